//! Checks between parts: what each part alone can't see.

use std::collections::HashMap;
use std::time::SystemTime;

use super::meaning::{
    ReadAdmin, ReadClient, ReadIdempotency, ReadRoute, ReadServer, ReadUpstream, Volatility,
};
use super::problem::Problems;
use super::settings::{Environment, OnUnknown};
use crate::net::ListenAddress;

/// Everything that was read.
pub(crate) struct Parts<'a> {
    pub(crate) server: &'a ReadServer,
    pub(crate) admin: &'a Option<ReadAdmin>,
    pub(crate) upstreams: &'a [ReadUpstream],
    pub(crate) clients: &'a [ReadClient],
    pub(crate) routes: &'a [ReadRoute],
    pub(crate) volatility: &'a Volatility,
    pub(crate) now: SystemTime,
}

/// Runs them all.
pub(crate) fn check(parts: &Parts<'_>, problems: &mut Problems) {
    one_listener_each(parts, problems);
    admin_has_tokens(parts, problems);
    drain_outlasts_calls(parts, problems);
    no_ambiguous_clients(parts.clients, problems);
    one_route_each(parts.routes, problems);
    one_definition_each(parts.routes, problems);
    for route in parts.routes {
        one_environment(route, parts.clients, problems);
        somebody_may_call(route, parts, problems);
        holds_durably(route, parts.volatility, problems);
        no_header_twice(route, parts.upstreams, problems);
    }
    nothing_unused(parts, problems);
}

fn one_listener_each(parts: &Parts<'_>, problems: &mut Problems) {
    let Some(admin) = parts.admin else {
        return;
    };
    let chosen_by_system =
        matches!(&admin.listen.value, ListenAddress::Tcp(address) if address.port() == 0);
    if admin.listen.value == parts.server.listen.value && !chosen_by_system {
        let message = "is the address of server.listen";
        problems.error(&admin.listen.place, "same_address", message);
    }
}

fn admin_has_tokens(parts: &Parts<'_>, problems: &mut Problems) {
    let Some(admin) = parts.admin else {
        return;
    };
    let open = match &admin.listen.value {
        ListenAddress::Tcp(address) => !address.ip().to_canonical().is_loopback(),
        ListenAddress::Unix(_) => false,
    };
    if open && admin.meaning.tokens.is_empty() {
        problems
            .warning(
                &admin.listen.place,
                "admin_without_tokens",
                "the admin API can be reached from other machines, and no token is configured",
            )
            .help(
                "name tokens in admin.tokens, so that the ledger's events tell who resolved what",
            );
    }
}

fn drain_outlasts_calls(parts: &Parts<'_>, problems: &mut Problems) {
    let drain = &parts.server.drain_within;
    let longest = parts
        .upstreams
        .iter()
        .map(|upstream| upstream.settle_within)
        .max();
    if longest.is_some_and(|longest| drain.value < longest) {
        problems
            .warning(
                &drain.place,
                "short_drain",
                "is shorter than an upstream's settle_within",
            )
            .help("calls still running at its end are recorded as unknown, and refunds are then held for a person");
    }
}

/// Tiki signs `timestamp.client.body` without lengths: with one secret, client `a` with the body
/// `b.x` and client `a.b` with the body `x` have the same signature.
fn no_ambiguous_clients(clients: &[ReadClient], problems: &mut Problems) {
    for longer in clients {
        for shorter in clients {
            let (Some(long_id), Some(short_id)) = (&longer.id, &shorter.id) else {
                continue;
            };
            let ambiguous = long_id
                .value
                .strip_prefix(&short_id.value)
                .is_some_and(|rest| rest.starts_with('.'));
            if !ambiguous {
                continue;
            }
            for one in &longer.secrets {
                if shorter
                    .secrets
                    .iter()
                    .any(|other| other.secret == one.secret)
                {
                    problems
                        .error(
                            &one.place,
                            "ambiguous_clients",
                            format!(
                                "clients `{}` and `{}` share this secret, and a signature of one can be read as one of the other",
                                short_id.value, long_id.value
                            ),
                        )
                        .help("ask Tiki for a secret of its own for each client");
                }
            }
        }
    }
}

fn one_route_each(routes: &[ReadRoute], problems: &mut Problems) {
    let mut seen = HashMap::new();
    for route in routes {
        let Some((method, path)) = &route.endpoint else {
            continue;
        };
        let before = seen.insert((method, &path.value), route);
        if before.is_some() {
            let message = "another route has this method and path already";
            problems.error(&path.place, "duplicate_route", message);
        }
    }
}

fn one_definition_each(routes: &[ReadRoute], problems: &mut Problems) {
    let mut seen: HashMap<&str, &ReadIdempotency> = HashMap::new();
    for keyed in routes.iter().filter_map(|route| route.idempotency.as_ref()) {
        let namespace = keyed.namespace.value.as_str();
        let Some(first) = seen.get(namespace) else {
            seen.insert(namespace, keyed);
            continue;
        };
        if !first.definition.agrees_with(&keyed.definition) {
            problems
                .error(
                    &keyed.namespace.place,
                    "namespace_definitions",
                    format!("the namespace `{namespace}` has another key or fingerprint on an earlier route"),
                )
                .help("give this route a namespace of its own, or both the same key and fingerprint");
        }
    }
}

fn one_environment(route: &ReadRoute, clients: &[ReadClient], problems: &mut Problems) {
    let has = |environment: Environment| {
        route
            .clients
            .indexes
            .iter()
            .filter_map(|index| clients.get(*index))
            .any(|client| client.environment == environment)
    };
    if has(Environment::Production) && has(Environment::Sandbox) {
        problems
            .error(
                &route.clients.place,
                "mixed_environments",
                "clients of sandbox and production may call this route",
            )
            .help("name the clients of one of them: clients = [\"...\"]; the other gets a route with a backend of its own");
    }
}

fn somebody_may_call(route: &ReadRoute, parts: &Parts<'_>, problems: &mut Problems) {
    let callers: Vec<&ReadClient> = route
        .clients
        .indexes
        .iter()
        .filter_map(|index| parts.clients.get(*index))
        .collect();
    // Where a client or its name is broken, that is what was reported.
    if !route.clients.complete || parts.clients.iter().any(|client| client.meaning.is_none()) {
        return;
    }
    let can_sign = |client: &&ReadClient| {
        client.meaning.as_ref().is_some_and(|client| {
            client
                .secrets
                .iter()
                .any(|secret| secret.not_after.is_none_or(|end| end > parts.now))
        })
    };
    if !parts.clients.is_empty() && !callers.iter().any(can_sign) {
        problems.warning(
            &route.clients.place,
            "no_client",
            "no client with a valid secret may call this route",
        );
    }
}

fn holds_durably(route: &ReadRoute, volatility: &Volatility, problems: &mut Problems) {
    let Some(keyed) = &route.idempotency else {
        return;
    };
    let holds = keyed.on_unknown.value == OnUnknown::Hold;
    if holds && volatility.volatile && !volatility.allowed {
        problems
            .error(
                &keyed.on_unknown.place,
                "volatile_hold",
                "the route holds calls whose outcome is unknown, and a ledger in memory forgets them at exit",
            )
            .help("a restart could then send a refund twice; to accept that, write allow_volatile = true under [ledger]");
    }
}

/// A caller's copy beside the gate's own would let the caller choose which one the backend reads.
fn no_header_twice(route: &ReadRoute, upstreams: &[ReadUpstream], problems: &mut Problems) {
    let Some(upstream) = route.upstream.and_then(|index| upstreams.get(index)) else {
        return;
    };
    for header in &route.forward_headers {
        if upstream.set_headers.contains(&header.value) {
            problems
                .error(
                    &header.place,
                    "header_twice",
                    format!(
                        "the upstream `{}` sets this header itself",
                        upstream.name.value
                    ),
                )
                .help("take it out of forward_headers or of set_headers");
        }
    }
}

fn nothing_unused(parts: &Parts<'_>, problems: &mut Problems) {
    if parts.routes.is_empty() || parts.routes.iter().any(|route| route.meaning.is_none()) {
        return;
    }
    for (index, upstream) in parts.upstreams.iter().enumerate() {
        if !parts
            .routes
            .iter()
            .any(|route| route.upstream == Some(index))
        {
            let message = "no route leads to this upstream";
            problems.warning(&upstream.name.place, "unused", message);
        }
    }
    for (index, client) in parts.clients.iter().enumerate() {
        let called = parts
            .routes
            .iter()
            .any(|route| route.clients.indexes.contains(&index));
        if !called {
            problems.warning(
                &client.place,
                "unused",
                "no route may be called by this client",
            );
        }
    }
}
