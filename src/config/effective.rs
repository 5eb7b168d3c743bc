//! The settings as they are in force, for people: named as in the configuration, secrets redacted.

mod outbound;
mod tracing;

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::settings::{
    Admin, AdminToken, AnswerSource, Breaker, Client, ClientSecret, Condition, Endpoint,
    Environment, Expiry, HealthCheck, Idempotency, Ledger, ListenerTls, Log, LogFormat, OnUnknown,
    OutcomeRules, PossibleDuplicate, PostgresStore, Probe, ProbePart, ProbeSign, Rate, Route,
    Server, Settings, Signature, SignedPath, SqliteStore, StaleEvents, Store, Upstream,
};
use super::units::{format_duration, format_size};
use crate::net::{AddressHeader, AddressRules, Networks, TrustedProxies};
use crate::tiki::{Family, PayloadKind, Window};

const REDACTED: &str = "[redacted]";

/// The whole of it. Holds no null, so that it can be written as TOML too.
pub fn effective(settings: &Settings) -> Value {
    let Settings {
        server,
        admin,
        upstreams,
        signature,
        clients,
        routes,
        ledger,
        outbound,
        tracing,
        log,
        certificates,
    } = settings;
    let upstreams_by_name: Map<String, Value> = upstreams
        .iter()
        .map(|upstream| (upstream.name.clone(), show_upstream(upstream)))
        .collect();
    let routes: Vec<Value> = routes
        .iter()
        .map(|route| show_route(route, settings))
        .collect();
    let mut shown = json!({
        "server": show_server(server),
        "admin": show_admin(admin),
        "upstreams": upstreams_by_name,
        "signature": show_signature(signature),
        "clients": clients.iter().map(|client| show_client(client)).collect::<Vec<_>>(),
        "routes": routes,
        "ledger": show_ledger(ledger),
        "log": show_log(log),
    });
    if !certificates.is_empty() {
        let ends = certificates.iter().map(|expiry| {
            let Expiry { key, not_after } = expiry;
            (key.clone(), json!(show_time(*not_after)))
        });
        shown["certificates_end"] = ends.collect::<Map<_, _>>().into();
    }
    if let Some(outbound) = outbound {
        shown["outbound"] = outbound::show(outbound, settings);
    }
    if let Some(tracing) = tracing {
        shown["tracing"] = tracing::show(tracing);
    }
    shown
}

fn show_server(server: &Server) -> Value {
    let Server {
        listen,
        max_connections,
        max_in_flight,
        header_timeout,
        body_timeout,
        min_body_rate,
        idle_timeout,
        write_timeout,
        max_connection_age,
        head_limit,
        max_headers,
        per_address,
        trusted_proxies,
        proxy_protocol,
        addresses,
        tls,
        drain_delay,
        drain_within,
        workers,
    } = server;
    let TrustedProxies { networks, header } = trusted_proxies;
    let AddressRules { allow, deny } = addresses;
    let mut shown = json!({
        "listen": listen.to_string(),
        "max_connections": max_connections,
        "max_in_flight": max_in_flight,
        "header_timeout": format_duration(*header_timeout),
        "body_timeout": format_duration(*body_timeout),
        "min_body_rate": format_size(*min_body_rate),
        "idle_timeout": format_duration(*idle_timeout),
        "write_timeout": format_duration(*write_timeout),
        "max_connection_age": format_duration(*max_connection_age),
        "head_limit": format_size(*head_limit),
        "max_headers": max_headers,
        "per_address": show_rate(per_address),
        "trusted_proxies": show_networks(networks),
        "address_header": match header {
            AddressHeader::XForwardedFor => "x-forwarded-for",
            AddressHeader::Forwarded => "forwarded",
        },
        "proxy_protocol": proxy_protocol,
        "allow": show_networks(allow),
        "deny": show_networks(deny),
        "drain_delay": format_duration(*drain_delay),
        "drain_within": format_duration(*drain_within),
        "workers": workers,
    });
    if let Some(tls) = tls {
        shown["tls"] = show_tls(tls);
    }
    shown
}

/// Its files' names are in the configuration; this says what they mean.
fn show_tls(tls: &ListenerTls) -> Value {
    json!({
        "versions": ["1.2", "1.3"],
        "demands_client_certificate": tls.demands_certificate,
        "handshake_timeout": format_duration(tls.handshake_timeout),
    })
}

fn show_rate(rate: &Rate) -> Value {
    let Rate { per_second, burst } = rate;
    json!({ "per_second": per_second, "burst": burst })
}

fn show_networks(shown: &Networks) -> Vec<String> {
    let Networks { networks, unix } = shown;
    networks
        .iter()
        .map(ToString::to_string)
        .chain(unix.then(|| "unix".to_owned()))
        .collect()
}

fn show_admin(admin: &Admin) -> Value {
    let Admin {
        listen,
        tokens,
        hosts,
        addresses,
    } = admin;
    let AddressRules { allow, deny } = addresses;
    let tokens: Vec<Value> = tokens
        .iter()
        .map(|AdminToken { name, token: _ }| json!({ "name": name, "token": REDACTED }))
        .collect();
    json!({
        "listen": listen.to_string(),
        "tokens": tokens,
        "hosts": hosts,
        "allow": show_networks(allow),
        "deny": show_networks(deny),
    })
}

/// A host as it stands in a URL.
fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

fn show_set_headers(upstream: &Upstream) -> Value {
    let names = upstream.set_headers.iter();
    let shown = names.map(|(name, _)| (name.to_string(), REDACTED.into()));
    shown.collect::<Map<_, _>>().into()
}

fn show_upstream(upstream: &Upstream) -> Value {
    let Upstream {
        name: _,
        endpoints,
        host,
        connect_timeout,
        answer_within,
        settle_within,
        max_in_flight,
        set_headers: _,
        breaker,
        health,
    } = upstream;
    let urls: Vec<String> = endpoints.iter().map(show_endpoint).collect();
    let mut shown = json!({
        "url": urls,
        "host": String::from_utf8_lossy(host.as_bytes()),
        "connect_timeout": format_duration(*connect_timeout),
        "answer_within": format_duration(*answer_within),
        "settle_within": format_duration(*settle_within),
        "max_in_flight": max_in_flight,
        "set_headers": show_set_headers(upstream),
        "breaker": show_breaker(breaker),
    });
    if let Some(health) = health {
        shown["health"] = show_health(health);
    }
    shown
}

fn show_endpoint(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } => format!("http://{}:{port}", bracketed(host)),
        Endpoint::Tls { host, port, .. } => format!("https://{}:{port}", bracketed(host)),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn show_breaker(breaker: &Breaker) -> Value {
    let Breaker {
        enabled,
        failures,
        failure_percent,
        min_calls,
        window,
        open_for,
    } = breaker;
    json!({
        "enabled": enabled,
        "failures": failures,
        "failure_percent": failure_percent,
        "min_calls": min_calls,
        "window": format_duration(*window),
        "open_for": format_duration(*open_for),
    })
}

fn show_health(health: &HealthCheck) -> Value {
    let HealthCheck {
        path,
        every,
        timeout,
        healthy_after,
        unhealthy_after,
    } = health;
    json!({
        "path": path,
        "every": format_duration(*every),
        "timeout": format_duration(*timeout),
        "healthy_after": healthy_after,
        "unhealthy_after": unhealthy_after,
    })
}

fn show_signature(signature: &Signature) -> Value {
    let Signature {
        families,
        refuse_with,
        max_remembered,
    } = signature;
    json!({
        "families": families.iter().map(|family| family.as_str()).collect::<Vec<_>>(),
        "refuse_with": refuse_with.as_u16(),
        "max_remembered": max_remembered,
    })
}

fn show_client(client: &Client) -> Value {
    let Client {
        id,
        name,
        environment,
        partner_code,
        secrets,
        rate,
    } = client;
    let environment = match environment {
        Environment::Production => "production",
        Environment::Sandbox => "sandbox",
    };
    let mut shown = json!({
        "id": id,
        "name": name,
        "environment": environment,
        "secrets": secrets.iter().map(show_secret).collect::<Vec<_>>(),
        "rate": show_rate(rate),
    });
    if let Some(code) = partner_code {
        shown["partner_code"] = json!(code);
    }
    shown
}

fn show_secret(secret: &ClientSecret) -> Value {
    let ClientSecret {
        name,
        key: _,
        not_after,
    } = secret;
    let mut shown = json!({ "name": name, "secret": REDACTED });
    if let Some(end) = not_after {
        shown["not_after"] = json!(show_time(*end));
    }
    shown
}

fn show_time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "far away".to_owned(), |time| time.to_string())
}

fn show_route(route: &Route, settings: &Settings) -> Value {
    let Route {
        name,
        path,
        method,
        payload,
        upstream,
        upstream_path,
        clients,
        addresses,
        windows,
        body_limit,
        answer,
        answer_limit,
        forward_headers,
        strip_signature,
        signed_path,
        outcome,
        confirm,
        idempotency,
    } = route;
    let upstream = settings.upstreams.get(*upstream);
    let clients: Vec<&str> = clients
        .iter()
        .filter_map(|index| settings.clients.get(*index))
        .map(|client| client.name.as_str())
        .collect();
    let SignedPath { strip, add } = signed_path;
    let OutcomeRules {
        success_when,
        failed_when,
        final_statuses,
        retry_statuses,
    } = outcome;
    let codes = |list: &[http::StatusCode]| list.iter().map(|s| s.as_u16()).collect::<Vec<_>>();
    let answer = match answer {
        AnswerSource::Backend => "backend",
        AnswerSource::Platform => "platform",
    };
    let mut shown = json!({
        "name": name,
        "path": path,
        "method": method.as_str(),
        "payload": payload.as_str(),
        "upstream": upstream.map_or("", |upstream| upstream.name.as_str()),
        "upstream_path": upstream_path,
        "clients": clients,
        "allow": show_networks(&addresses.allow),
        "deny": show_networks(&addresses.deny),
        "max_age": per_family(windows, |window| window.max_age),
        "max_ahead": per_family(windows, |window| window.max_ahead),
        "body_limit": format_size(*body_limit),
        "answer": answer,
        "answer_limit": format_size(*answer_limit),
        "forward_headers": forward_headers.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "strip_signature": strip_signature,
        "signed_path": { "strip": strip, "add": add },
        "final_statuses": codes(final_statuses),
        "retry_statuses": codes(retry_statuses),
        "confirm": confirm,
    });
    if let Some(condition) = success_when {
        shown["success_when"] = show_condition(condition);
    }
    if let Some(condition) = failed_when {
        shown["failed_when"] = show_condition(condition);
    }
    if let Some(idempotency) = idempotency {
        shown["idempotency"] = show_idempotency(idempotency, *payload);
    }
    shown
}

fn per_family(
    windows: &[Window; 2],
    part: impl Fn(&Window) -> std::time::Duration,
) -> Map<String, Value> {
    Family::ALL
        .into_iter()
        .zip(windows)
        .map(|(family, window)| {
            let value = format_duration(part(window));
            (family.as_str().to_owned(), value.into())
        })
        .collect()
}

fn show_condition(condition: &Condition) -> Value {
    let Condition { pointer, equals } = condition;
    json!({ "pointer": pointer.as_str(), "equals": equals })
}

fn show_idempotency(idempotency: &Idempotency, payload: PayloadKind) -> Value {
    let Idempotency {
        namespace,
        spec,
        on_unknown,
        keep,
        resend_age,
        stale_events,
        possible_duplicate,
        duplicate_window,
        probe,
    } = idempotency;
    let on_unknown = match on_unknown {
        OnUnknown::Hold => "hold",
        OnUnknown::Resend => "resend",
    };
    let mut shown = json!({
        "namespace": namespace,
        "key": spec.key_text(),
        "fingerprint": spec.fingerprint_text(),
        "on_unknown": on_unknown,
        "keep": format_duration(*keep),
        "resend_age": format_duration(*resend_age),
    });
    if payload == PayloadKind::OrderIpn {
        shown["stale_events"] = json!(match stale_events {
            StaleEvents::Mark => "mark",
            StaleEvents::Drop => "drop",
        });
    }
    if payload == PayloadKind::Refund {
        shown["possible_duplicate"] = json!(match possible_duplicate {
            PossibleDuplicate::Mark => "mark",
            PossibleDuplicate::Hold => "hold",
        });
        shown["duplicate_window"] = json!(format_duration(*duplicate_window));
    }
    if let Some(probe) = probe {
        shown["probe"] = show_probe(probe);
    }
    shown
}

fn show_probe(probe: &Probe) -> Value {
    let Probe {
        path,
        timeout,
        applied,
        not_applied,
    } = probe;
    let path: String = path
        .iter()
        .map(|part| match part {
            ProbePart::Text(text) => text.clone(),
            ProbePart::Key => "{key}".to_owned(),
            ProbePart::Field(name) => format!("{{{name}}}"),
        })
        .collect();
    let signs = |list: &[ProbeSign]| list.iter().map(show_sign).collect::<Vec<_>>();
    json!({
        "path": path,
        "timeout": format_duration(*timeout),
        "applied": signs(applied),
        "not_applied": signs(not_applied),
    })
}

fn show_sign(sign: &ProbeSign) -> Value {
    let ProbeSign { status, when } = sign;
    let mut shown = when.as_ref().map_or_else(|| json!({}), show_condition);
    shown["status"] = json!(status.as_u16());
    shown
}

fn show_ledger(ledger: &Ledger) -> Value {
    let Ledger {
        store,
        time_zone,
        directory,
    } = ledger;
    let mut shown = show_store(store);
    shown["time_zone"] = json!(time_zone);
    shown["directory"] = json!(directory.display().to_string());
    shown
}

fn show_store(store: &Store) -> Value {
    match store {
        Store::Memory {
            max_records,
            max_bytes,
        } => json!({
            "store": "memory",
            "max_records": max_records,
            "max_bytes": format_size(*max_bytes),
        }),
        Store::Sqlite(store) => {
            let SqliteStore {
                path,
                watermark,
                require_existing,
                allow_unsafe_filesystem,
                holds: _,
            } = store;
            json!({
                "store": "sqlite",
                "path": path.display().to_string(),
                "watermark": watermark.display().to_string(),
                "require_existing": require_existing,
                "allow_unsafe_filesystem": allow_unsafe_filesystem,
            })
        }
        Store::Postgres(store) => {
            let PostgresStore {
                url: _,
                ca,
                connections,
                lease,
                require_existing,
            } = store;
            let mut shown = json!({
                "store": "postgres",
                "url": REDACTED,
                "connections": connections,
                "lease": format_duration(*lease),
                "require_existing": require_existing,
            });
            if let Some(ca) = ca {
                shown["ca"] = json!(ca.display().to_string());
            }
            shown
        }
    }
}

fn show_log(log: &Log) -> Value {
    let Log { format, level } = log;
    let format = match format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    };
    json!({ "format": format, "level": level.to_string().to_ascii_lowercase() })
}
