//! `[upstreams.NAME]`

use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, HeaderValue};

use super::{Context, count, duration, headers, label, number, paths, secrets, tls};
use crate::config::Secret;
use crate::config::problem::Problems;
use crate::config::schema::{self, HeaderSource, Urls};
use crate::config::settings::{Breaker, Endpoint, HealthCheck, Trust, Upstream};
use crate::config::tls::{Roots, digest_of};
use crate::config::value::{At, Field, Named};

/// Tiki waits this long for an answer (docs/protocol.md, "Retries").
const TIKI_WAITS: Duration = Duration::from_secs(15);

/// An upstream, with what other checks need. The name is known even if the rest is wrong.
pub(crate) struct ReadUpstream {
    pub(crate) name: At<String>,
    pub(crate) settle_within: Duration,
    pub(crate) set_headers: Vec<HeaderName>,
    pub(crate) meaning: Option<Upstream>,
}

/// Reads all upstreams.
pub(crate) fn upstreams(
    written: Field<Named<schema::Upstream>>,
    context: &mut Context<'_>,
) -> Vec<ReadUpstream> {
    let wrong = !written.is_absent() && written.peek().is_none();
    let written = written.or(Named(Vec::new()));
    if written.value.0.is_empty() && !wrong {
        context
            .problems
            .error(&written.place, "missing", "at least one backend is needed")
            .help("write [upstreams.legacy] with url = \"http://127.0.0.1:9000\"");
    }
    written
        .value
        .0
        .into_iter()
        .map(|(name, upstream)| read(name, upstream.value, context))
        .collect()
}

fn read(name: At<String>, written: schema::Upstream, context: &mut Context<'_>) -> ReadUpstream {
    let schema::Upstream {
        url,
        host,
        connect_timeout,
        answer_within,
        settle_within,
        max_in_flight,
        set_headers,
        ca,
        client_certificate,
        client_key,
        breaker,
        health,
    } = written;
    let name_fits = label(name.clone(), context.problems).is_some();
    let targets = url.required(context.problems).and_then(|urls| {
        let trust = BackendTrust::read(ca, client_certificate, client_key, &urls.value, context);
        targets(urls, trust, context)
    });
    let problems = &mut *context.problems;
    let host = host_header(host, targets.as_deref(), problems);
    let breaker = read_breaker(breaker, problems);
    let health = read_health(health, problems);
    let deadlines = Deadlines::read(connect_timeout, answer_within, settle_within, problems);
    let max_in_flight = count(max_in_flight, 64, 1..=100_000, problems);
    let (header_names, set_headers) = fixed_headers(set_headers, context);

    let settle_within = deadlines.settle_within;
    let meaning = || {
        Some(Upstream {
            name: name_fits.then(|| name.value.clone())?,
            endpoints: targets?.into_iter().map(|target| target.endpoint).collect(),
            host: host?,
            connect_timeout: deadlines.connect_timeout,
            answer_within: deadlines.answer_within,
            settle_within,
            max_in_flight,
            set_headers: set_headers?,
            breaker,
            health: health?,
        })
    };
    ReadUpstream {
        meaning: meaning(),
        name,
        settle_within,
        set_headers: header_names,
    }
}

struct Deadlines {
    connect_timeout: Duration,
    answer_within: Duration,
    settle_within: Duration,
}

impl Deadlines {
    fn read(
        connect_timeout: Field<Duration>,
        answer_within: Field<Duration>,
        settle_within: Field<Duration>,
        problems: &mut Problems,
    ) -> Self {
        let least = Duration::from_millis(1);
        let most = Duration::from_secs(3600);
        let connect = duration(
            connect_timeout,
            Duration::from_secs(1),
            least..=TIKI_WAITS,
            problems,
        );
        let answer = duration(
            answer_within,
            Duration::from_secs(13),
            least..=most,
            problems,
        );
        let settle = duration(
            settle_within,
            Duration::from_secs(60),
            least..=most,
            problems,
        );
        if answer.value >= TIKI_WAITS {
            problems
                .error(
                    &answer.place,
                    "late_answer",
                    "must be under 15s: Tiki waits no longer, and sends again while the first call still runs",
                )
                .help("13s leaves the network two seconds");
        }
        if connect.value >= answer.value {
            let message = "must be shorter than answer_within";
            problems.error(&connect.place, "bad_deadlines", message);
        }
        if settle.value < answer.value {
            let message = "must not be shorter than answer_within";
            problems.error(&settle.place, "bad_deadlines", message);
        }
        Self {
            connect_timeout: connect.value,
            answer_within: answer.value,
            settle_within: settle.value,
        }
    }
}

struct Target {
    endpoint: Endpoint,
    /// The `Host` that the url implies.
    host: String,
}

/// Reads all addresses: each one once.
fn targets(
    urls: At<Urls>,
    trust: Option<Option<Trust>>,
    context: &mut Context<'_>,
) -> Option<Vec<Target>> {
    let At { place, value: urls } = urls;
    if urls.0.is_empty() {
        context
            .problems
            .error(&place, "missing", "names no address")
            .help("write url = \"http://127.0.0.1:9000\", or a list of such");
        return None;
    }
    let asked = urls.0.len();
    let mut targets: Vec<Target> = Vec::with_capacity(asked);
    for url in urls.0 {
        let Some(target) = target(&url, trust.as_ref(), context) else {
            continue;
        };
        if targets
            .iter()
            .any(|other| other.endpoint == target.endpoint)
        {
            let message = "another address of this backend is the same";
            context.problems.error(&url.place, "duplicate", message);
            continue;
        }
        targets.push(target);
    }
    (targets.len() == asked).then_some(targets)
}

/// Reads `http://host[:port]`, `https://host[:port]` or `unix:/path`. The url itself is not shown: it may
/// hold a password.
fn target(
    url: &At<String>,
    trust: Option<&Option<Trust>>,
    context: &mut Context<'_>,
) -> Option<Target> {
    if let Some(path) = url.value.strip_prefix("unix:") {
        if path.is_empty() {
            let message = "a path must follow `unix:`";
            context.problems.error(&url.place, "bad_url", message);
            return None;
        }
        return Some(Target {
            endpoint: Endpoint::Unix(context.path(path)),
            host: "localhost".to_owned(),
        });
    }
    let target = match url.value.strip_prefix("https://") {
        // Without them something was reported.
        Some(rest) => authority(rest, 443)
            .zip(trust?.clone())
            .map(|(parsed, trust)| Target {
                host: parsed.text,
                endpoint: Endpoint::Tls {
                    host: parsed.host_port.host,
                    port: parsed.host_port.port,
                    trust,
                },
            }),
        None => http_target(&url.value),
    };
    if target.is_none() {
        context
            .problems
            .error(&url.place, "bad_url", "is no backend's address")
            .help("write http://host:port, https://host:port or unix:/path, without user, path and query; the path is upstream_path of the route");
    }
    target
}

fn http_target(url: &str) -> Option<Target> {
    let parsed = authority(url.strip_prefix("http://")?, 80)?;
    let HostPort { host, port } = parsed.host_port;
    Some(Target {
        endpoint: Endpoint::Tcp { host, port },
        host: parsed.text,
    })
}

struct ParsedAuthority {
    host_port: HostPort,
    /// As it was written.
    text: String,
}

fn authority(text: &str, default_port: u16) -> Option<ParsedAuthority> {
    let text = text.strip_suffix('/').unwrap_or(text);
    Some(ParsedAuthority {
        host_port: host_port(text, default_port)?,
        text: text.to_owned(),
    })
}

/// The host of an authority, without brackets, and its port.
pub(super) struct HostPort {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Reads `host[:port]`, as it stands in a URL, without a user.
pub(super) fn host_port(text: &str, default_port: u16) -> Option<HostPort> {
    let authority: Authority = text.parse().ok()?;
    if text.contains('@') {
        return None;
    }
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_fits = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_dns_name(host),
    };
    let port = match text.strip_prefix(host)? {
        "" => default_port,
        port => port
            .strip_prefix(':')?
            .parse::<u16>()
            .ok()
            .filter(|number| {
                *number != 0 && port.bytes().skip(1).all(|byte| byte.is_ascii_digit())
            })?,
    };
    host_fits.then(|| HostPort {
        host: bare.unwrap_or(host).to_owned(),
        port,
    })
}

fn is_dns_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

fn host_header(
    field: Field<String>,
    targets: Option<&[Target]>,
    problems: &mut Problems,
) -> Option<HeaderValue> {
    let place = field.place.clone();
    let absent = field.is_absent();
    let Some(written) = field.written() else {
        let (first, others) = targets?.split_first()?;
        if absent && others.iter().any(|other| other.host != first.host) {
            problems
                .error(
                    &place,
                    "missing",
                    "is required where the addresses have several hosts",
                )
                .help(
                    "write the Host that all of them answer to, such as host = \"legacy.internal\"",
                );
            return None;
        }
        return HeaderValue::from_str(&first.host).ok();
    };
    let fits = written
        .value
        .parse::<Authority>()
        .is_ok_and(|authority| !authority.as_str().contains('@'));
    if !fits {
        let message = "is no host, with or without a port";
        problems.error(&written.place, "bad_host", message);
        return None;
    }
    HeaderValue::from_str(&written.value).ok()
}

/// What a backend's certificate is checked against, and what is shown to it.
struct BackendTrust;

impl BackendTrust {
    /// The outer `None`: something is wrong, and was reported. The inner one: no address is `https`.
    fn read(
        ca: Field<String>,
        certificate: Field<String>,
        key: Field<String>,
        urls: &Urls,
        context: &mut Context<'_>,
    ) -> Option<Option<Trust>> {
        let https = urls.0.iter().find(|url| url.value.starts_with("https://"));
        let Some(https) = https else {
            for field in [ca, certificate, key] {
                if !field.is_absent() {
                    let message = "is for https, and no url of this backend is";
                    context.problems.warning(&field.place, "unused", message);
                }
            }
            return Some(None);
        };
        let place = https.place.clone();
        let shown = !certificate.is_absent() || !key.is_absent();
        let roots = if ca.is_absent() {
            Roots::of_the_system()
                .map_err(|fault| {
                    context
                        .problems
                        .error(&place, "no_certificates", fault)
                        .help("install ca-certificates, or name a PEM file with ca");
                })
                .ok()
        } else {
            tls::roots(ca, context)
        };
        let pair = match shown {
            true => Some(tls::pair(certificate, key, context)?),
            false => None,
        };
        let key_place = pair.as_ref().map(|pair| pair.key_place.clone());
        let identity = pair.map(|pair| {
            let digest = digest_of([Some(&pair.certificate), Some(&pair.key)]);
            (pair.identity, digest)
        });
        match Trust::new(roots?, identity) {
            Ok(trust) => Some(Some(trust)),
            Err(fault) => {
                let place = key_place.unwrap_or(place);
                context.problems.error(&place, "bad_certificate", fault);
                None
            }
        }
    }
}

fn read_breaker(field: Field<schema::Breaker>, problems: &mut Problems) -> Breaker {
    let usual = Breaker {
        enabled: true,
        ..Breaker::OFF
    };
    let Some(At { value, .. }) = field.written() else {
        return usual;
    };
    let schema::Breaker {
        enabled,
        failures,
        failure_percent,
        min_calls,
        window,
        open_for,
    } = value;
    let narrow = |number: At<u64>| u32::try_from(number.value).unwrap_or(u32::MAX);
    let second = Duration::from_secs(1);
    Breaker {
        enabled: enabled.or(usual.enabled).value,
        failures: narrow(number(
            failures,
            u64::from(usual.failures),
            1..=10_000,
            problems,
        )),
        failure_percent: narrow(number(
            failure_percent,
            u64::from(usual.failure_percent),
            1..=100,
            problems,
        )),
        min_calls: narrow(number(
            min_calls,
            u64::from(usual.min_calls),
            1..=100_000,
            problems,
        )),
        window: duration(window, usual.window, second..=3600 * second, problems).value,
        open_for: duration(
            open_for,
            usual.open_for,
            Duration::from_millis(1)..=3600 * second,
            problems,
        )
        .value,
    }
}

/// The outer `None`: something is wrong, and was reported.
fn read_health(
    field: Field<schema::Health>,
    problems: &mut Problems,
) -> Option<Option<HealthCheck>> {
    if field.is_absent() {
        return Some(None);
    }
    let At { value, .. } = field.written()?;
    let schema::Health {
        path,
        every,
        timeout,
        healthy_after,
        unhealthy_after,
    } = value;
    let path = path
        .required(problems)
        .and_then(|path| paths::upstream_path(path, problems));
    let times = |field, default, problems: &mut Problems| {
        let number = number(field, default, 1..=100, problems);
        u32::try_from(number.value).unwrap_or(u32::MAX)
    };
    let second = Duration::from_secs(1);
    let every = duration(every, 5 * second, second / 10..=3600 * second, problems);
    let timeout = duration(
        timeout,
        second,
        Duration::from_millis(1)..=60 * second,
        problems,
    );
    let healthy_after = times(healthy_after, 2, problems);
    let unhealthy_after = times(unhealthy_after, 3, problems);
    Some(Some(HealthCheck {
        path: path?.value,
        every: every.value,
        timeout: timeout.value,
        healthy_after,
        unhealthy_after,
    }))
}

/// The names as far as they are valid, and all headers if everything about them is right.
pub(super) fn fixed_headers(
    field: Field<Named<HeaderSource>>,
    context: &mut Context<'_>,
) -> (Vec<HeaderName>, Option<Vec<(HeaderName, Secret)>>) {
    let written = field.or(Named(Vec::new())).value.0;
    let asked = written.len();
    let mut names = Vec::new();
    let mut complete = Vec::new();
    for (name, source) in written {
        let parsed = headers::settable(&name, context.problems);
        let value = header_value(&name, source, context);
        let Some(parsed) = parsed else {
            continue;
        };
        if names.contains(&parsed) {
            let message = "this header is set already";
            context.problems.error(&name.place, "duplicate", message);
            continue;
        }
        names.push(parsed.clone());
        if let Some(value) = value {
            complete.push((parsed, value));
        }
    }
    let complete = (complete.len() == asked).then_some(complete);
    (names, complete)
}

fn header_value(
    name: &At<String>,
    source: At<HeaderSource>,
    context: &mut Context<'_>,
) -> Option<Secret> {
    let (place, value) = match source.value {
        HeaderSource::Plain(text) => {
            headers::plain_value(name, &source.place, &text, context.problems)?;
            (source.place, Secret::new(text.into_bytes()))
        }
        HeaderSource::Secret(named) => {
            let read = secrets::read(named, &source.place, context)?;
            (read.place, read.secret)
        }
    };
    if HeaderValue::from_bytes(value.expose()).is_err() {
        let message = "the value can't be sent in a header";
        context.problems.error(&place, "bad_header", message);
        return None;
    }
    Some(value)
}
