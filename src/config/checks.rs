//! Checks between parts: what each part alone can't see.

mod outbound;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::meaning::{
    ReadAdmin, ReadClient, ReadIdempotency, ReadOutbound, ReadRoute, ReadServer, ReadUpstream,
    Volatility,
};
use super::problem::Problems;
use super::settings::{Environment, OnUnknown};
use super::units::format_duration;
use crate::net::ListenAddress;
use crate::tiki::PayloadKind;

/// Everything that was read.
pub(crate) struct Parts<'a> {
    pub(crate) server: &'a ReadServer,
    pub(crate) admin: &'a Option<ReadAdmin>,
    pub(crate) upstreams: &'a [ReadUpstream],
    pub(crate) clients: &'a [ReadClient],
    pub(crate) routes: &'a [ReadRoute],
    /// `signature.max_remembered`
    pub(crate) max_remembered: usize,
    pub(crate) volatility: &'a Volatility,
    pub(crate) outbound: Option<&'a ReadOutbound>,
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
    one_signed_path_each(parts.routes, problems);
    one_backend_each(parts, problems);
    remembers_signatures(parts, problems);
    for route in parts.routes {
        one_environment(route, parts.clients, problems);
        somebody_may_call(route, parts, problems);
        holds_durably(route, parts.volatility, problems);
        retries_surely(route, problems);
        no_header_twice(route, parts.upstreams, problems);
    }
    outbound::check(parts, problems);
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

/// Tiki signs a GET's path and query: two routes that read one signed path take each other's
/// signatures.
fn one_signed_path_each(routes: &[ReadRoute], problems: &mut Problems) {
    for (index, route) in routes.iter().enumerate() {
        let Some(path) = &route.signed_as else {
            continue;
        };
        let clashes = |earlier: &ReadRoute| {
            let signed = earlier.signed_as.as_ref();
            // The same path on the wire was reported as such.
            signed.is_some_and(|signed| signed.value == path.value)
                && !same_path(earlier, route)
                && share_a_client(earlier, route)
        };
        if routes[..index].iter().any(clashes) {
            problems
                .error(
                    &path.place,
                    "same_signed_path",
                    format!(
                        "another route of the same client reads the signed path `{}` too, so that a call signed for one is good for the other",
                        path.value
                    ),
                )
                .help("make signed_path of both what Tiki signs for each, or give each clients of its own");
        }
    }
}

fn same_path(one: &ReadRoute, other: &ReadRoute) -> bool {
    match (&one.endpoint, &other.endpoint) {
        (Some((_, one)), Some((_, other))) => one.value == other.value,
        _ => false,
    }
}

fn share_a_client(one: &ReadRoute, other: &ReadRoute) -> bool {
    let others = &other.clients.indexes;
    one.clients
        .indexes
        .iter()
        .any(|index| others.contains(index))
}

fn serves(route: &ReadRoute, clients: &[ReadClient], environment: Environment) -> bool {
    let mut callers = route
        .clients
        .indexes
        .iter()
        .filter_map(|index| clients.get(*index));
    callers.any(|client| client.environment == environment)
}

/// A backend that gets calls of both can't tell play money from real money by its own means.
fn one_backend_each(parts: &Parts<'_>, problems: &mut Problems) {
    let serves = |route: &ReadRoute, environment| serves(route, parts.clients, environment);
    // A route of both was reported by itself.
    let of_one =
        |route: &ReadRoute, environment, other| serves(route, environment) && !serves(route, other);
    for sandbox in parts.routes {
        if sandbox.upstream.is_none()
            || !of_one(sandbox, Environment::Sandbox, Environment::Production)
        {
            continue;
        }
        let beside_real = parts.routes.iter().any(|route| {
            route.upstream == sandbox.upstream
                && of_one(route, Environment::Production, Environment::Sandbox)
        });
        if beside_real {
            problems
                .error(
                    &sandbox.upstream_place,
                    "mixed_environments",
                    "this route of sandbox clients leads to the upstream of a route of production clients",
                )
                .help("give the sandbox a backend of its own: another [upstreams.NAME]");
        }
    }
}

/// A signature is remembered for as long as another route of its client would still take it. What
/// comes once the memory is full is refused.
fn remembers_signatures(parts: &Parts<'_>, problems: &mut Problems) {
    let routes = parts.routes.iter().enumerate();
    let remembered_for = routes.filter_map(|(index, route)| {
        let age = &route.idempotency.as_ref()?.resend_age;
        let mut others = parts.routes.iter().enumerate();
        let elsewhere =
            others.any(|(other_index, other)| other_index != index && share_a_client(route, other));
        (elsewhere && age.value > Duration::ZERO).then_some(age)
    });
    let Some(longest) = remembered_for.max_by_key(|age| age.value) else {
        return;
    };
    let rates = parts
        .clients
        .iter()
        .filter_map(|client| client.meaning.as_ref());
    let asked: u64 = rates.map(|client| u64::from(client.rate.per_second)).sum();
    let millis = longest.value.as_millis().max(1);
    let room = parts.max_remembered as u128;
    if room * 1000 < u128::from(asked) * millis {
        let full_at = match room * 1000 / millis {
            0 => "less than 1 call".to_owned(),
            1 => "1 call".to_owned(),
            calls => format!("{calls} calls"),
        };
        let needed = (u128::from(asked) * millis).div_ceil(1000);
        problems
            .warning(
                &longest.place,
                "signature_memory",
                format!(
                    "calls on the other routes are remembered for {}, and signature.max_remembered is too small for the clients' rates",
                    format_duration(longest.value)
                ),
            )
            .help(format!(
                "it fills up at {full_at} a second, and new calls are then refused with 503; the clients' rate.per_second add up to {asked}, for which max_remembered = {needed} is enough. Or make resend_age shorter, or the rates lower",
            ));
    }
}

fn one_environment(route: &ReadRoute, clients: &[ReadClient], problems: &mut Problems) {
    let has = |environment: Environment| serves(route, clients, environment);
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
    if !volatility.volatile || volatility.allowed {
        return;
    }
    // Whatever happens to unknown outcomes, a refund that was done must not be done again.
    let lost = if keyed.on_unknown.value == OnUnknown::Hold {
        "the route holds calls whose outcome is unknown, and a ledger in memory forgets them at exit"
    } else if route.payload == Some(PayloadKind::Refund) {
        "the route sends refunds, and a ledger in memory forgets at exit which of them were done"
    } else {
        return;
    };
    problems
        .error(&keyed.on_unknown.place, "volatile_hold", lost)
        .help("a restart could then send a refund twice; to accept that, write allow_volatile = true under [ledger]");
}

/// Such an answer often comes from something between the gate and the books, after they were written.
fn retries_surely(route: &ReadRoute, problems: &mut Problems) {
    let holds = route
        .idempotency
        .as_ref()
        .is_some_and(|keyed| keyed.on_unknown.value == OnUnknown::Hold);
    if !holds {
        return;
    }
    for status in &route.unclear_retries {
        problems
            .warning(
                &status.place,
                "unclear_retry",
                format!(
                    "the route holds, yet an answer of {} releases a call that may have been applied",
                    status.value
                ),
            )
            .help("let the backend say \"not applied\" in words: failed_when, or the platform's error envelope with 500");
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
