//! `[server]` and `[admin]`.

use std::time::Duration;

use super::secrets;
use super::{Context, count, duration, label, number, size, unique};
use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::settings::{Admin, AdminToken, Rate, Server};
use crate::config::tree::Place;
use crate::config::value::{At, Field};
use crate::net::{ListenAddress, TrustedProxies};

/// Timeouts of one step of a connection.
const SHORT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(300);

/// `[server]`, with what other checks need.
pub(crate) struct ReadServer {
    pub(crate) listen: At<ListenAddress>,
    pub(crate) drain_within: At<Duration>,
    pub(crate) meaning: Server,
}

/// Reads `[server]`.
pub(crate) fn server(written: schema::Server, problems: &mut Problems) -> ReadServer {
    let schema::Server {
        listen,
        max_connections,
        max_in_flight,
        header_timeout,
        body_timeout,
        idle_timeout,
        write_timeout,
        head_limit,
        max_headers,
        per_address,
        trusted_proxies,
        proxy_protocol,
        allow,
        drain_delay,
        drain_within,
        workers,
        tls,
    } = written;
    let seconds = Duration::from_secs;

    not_built(proxy_protocol, &allow, tls, problems);
    let listen = listen.or(ListenAddress::Tcp(([0, 0, 0, 0], 8080).into()));
    let drain_within = duration(
        drain_within,
        seconds(75),
        Duration::from_millis(1)..=seconds(3600),
        problems,
    );
    let meaning = Server {
        listen: listen.value.clone(),
        max_connections: count(max_connections, 10_000, 1..=1_000_000, problems),
        max_in_flight: count(max_in_flight, 1024, 1..=1_000_000, problems),
        header_timeout: duration(header_timeout, seconds(5), SHORT, problems).value,
        body_timeout: duration(body_timeout, seconds(10), SHORT, problems).value,
        idle_timeout: duration(
            idle_timeout,
            seconds(75),
            Duration::from_millis(1)..=seconds(3600),
            problems,
        )
        .value,
        write_timeout: duration(write_timeout, seconds(10), SHORT, problems).value,
        // The HTTP library takes no smaller buffer than 8 KiB.
        head_limit: size(head_limit, 16 << 10, 8 << 10..=1 << 20, problems),
        max_headers: count(max_headers, 64, 16..=1024, problems),
        per_address: rate(
            per_address,
            Rate {
                per_second: 200,
                burst: 400,
            },
            problems,
        ),
        trusted_proxies: proxies(trusted_proxies, problems),
        drain_delay: duration(
            drain_delay,
            seconds(2),
            Duration::ZERO..=seconds(300),
            problems,
        )
        .value,
        drain_within: drain_within.value,
        workers: count(workers, available_cores(), 1..=1024, problems),
    };
    ReadServer {
        listen,
        drain_within,
        meaning,
    }
}

/// Reads a rate; both numbers are at least 1.
pub(crate) fn rate(field: Field<schema::Rate>, default: Rate, problems: &mut Problems) -> Rate {
    const BOUNDS: std::ops::RangeInclusive<u64> = 1..=1_000_000;
    let Some(At { place: _, value }) = field.written() else {
        return default;
    };
    let schema::Rate { per_second, burst } = value;
    let per_second = match per_second.required(problems) {
        Some(written) => within(written, BOUNDS, problems).unwrap_or(default.per_second),
        None => default.per_second,
    };
    // A burst that is left out is two seconds' worth.
    let doubled = u64::from(per_second).saturating_mul(2).min(*BOUNDS.end());
    let burst = number(burst, doubled, BOUNDS, problems).value;
    Rate {
        per_second,
        burst: u32::try_from(burst).unwrap_or(u32::MAX),
    }
}

/// `[admin]`, with what other checks need.
pub(crate) struct ReadAdmin {
    pub(crate) listen: At<ListenAddress>,
    pub(crate) meaning: Admin,
}

/// Reads `[admin]`.
pub(crate) fn admin(written: schema::Admin, context: &mut Context<'_>) -> Option<ReadAdmin> {
    let schema::Admin {
        listen,
        tokens,
        hosts,
    } = written;
    let listen = listen.or(ListenAddress::Tcp(([127, 0, 0, 1], 9901).into()));
    let tokens = tokens.or(Vec::new());
    let asked = tokens.value.len();
    let tokens: Vec<ReadToken> = tokens
        .value
        .into_iter()
        .filter_map(|token| admin_token(token, context))
        .collect();
    let names = tokens
        .iter()
        .map(|token| (&token.name_place, token.meaning.name.as_str()));
    unique(names, "token", context.problems);
    one_holder_each(&tokens, context.problems);
    let hosts = hosts.or(Vec::new()).value;
    for host in &hosts {
        if !is_host_name(&host.value) {
            context
                .problems
                .error(&host.place, "bad_host", "is no host name")
                .help("write it as a caller does in `Host`: gate.internal or gate.internal:9901");
        }
    }
    if tokens.len() < asked {
        return None;
    }
    Some(ReadAdmin {
        meaning: Admin {
            listen: listen.value.clone(),
            tokens: tokens.into_iter().map(|token| token.meaning).collect(),
            hosts: hosts
                .into_iter()
                .map(|host| host.value.to_ascii_lowercase())
                .collect(),
        },
        listen,
    })
}

struct ReadToken {
    name_place: Place,
    secret_place: Place,
    meaning: AdminToken,
}

/// With one token for two names nobody could tell who resolved what.
fn one_holder_each(tokens: &[ReadToken], problems: &mut Problems) {
    for (index, one) in tokens.iter().enumerate() {
        let before = tokens[..index]
            .iter()
            .find(|before| before.meaning.token == one.meaning.token);
        if let Some(before) = before {
            problems
                .error(
                    &one.secret_place,
                    "same_secret",
                    format!(
                        "is the token of `{}` too: nobody could tell who resolved what",
                        before.meaning.name
                    ),
                )
                .help("make one for each: openssl rand -hex 32");
        }
    }
}

fn admin_token(written: At<schema::SecretEntry>, context: &mut Context<'_>) -> Option<ReadToken> {
    let place = written.place;
    let schema::SecretEntry {
        name,
        source,
        not_after,
    } = written.value;
    if let Some(not_after) = not_after.written() {
        let instead = "take the token out of the configuration when it shall end";
        context
            .problems
            .not_available(&not_after.place, "a token with an end is", instead);
    }
    let name = name
        .required(context.problems)
        .and_then(|name| label(name, context.problems));
    let read = secrets::read(source, &place, context)?;
    usable_token(&read, context.problems)?;
    let name = name?;
    Some(ReadToken {
        name_place: name.place,
        secret_place: read.place,
        meaning: AdminToken {
            name: name.value,
            token: read.secret,
        },
    })
}

/// Whether a secret can be a bearer token.
pub(super) fn usable_token(read: &secrets::ReadSecret, problems: &mut Problems) -> Option<()> {
    if !read.secret.expose().iter().all(u8::is_ascii_graphic) {
        let message = "a token must be printable ASCII without spaces: it travels in a header";
        problems.error(&read.place, "bad_secret", message);
        return None;
    }
    if read.secret.expose().len() < 16 {
        problems
            .warning(
                &read.place,
                "short_token",
                "the token is shorter than 16 characters",
            )
            .help("make one: openssl rand -hex 32");
    }
    Some(())
}

fn not_built(
    proxy_protocol: Field<bool>,
    allow: &Field<Vec<At<String>>>,
    tls: Field<schema::Tls>,
    problems: &mut Problems,
) {
    let proxy_protocol = proxy_protocol.or(false);
    if proxy_protocol.value {
        problems.not_available(
            &proxy_protocol.place,
            "the PROXY protocol is",
            "let the proxy send X-Forwarded-For and name it in server.trusted_proxies",
        );
    }
    no_allow_list(allow, problems);
    if let Some(tls) = tls.written() {
        let schema::Tls = tls.value;
        problems.not_available(
            &tls.place,
            "TLS at the listener is",
            "let the ingress or a proxy in front end TLS, and leave [server.tls] out",
        );
    }
}

/// Reports an allow list, which this version doesn't hold callers to.
pub(crate) fn no_allow_list(allow: &Field<Vec<At<String>>>, problems: &mut Problems) {
    if allow.peek().is_some_and(|list| !list.is_empty()) {
        problems.not_available(
            &allow.place,
            "allow lists of addresses are",
            "let a firewall, a network policy or the ingress decide who may connect",
        );
    }
}

fn proxies(field: Field<Vec<At<String>>>, problems: &mut Problems) -> TrustedProxies {
    let mut proxies = TrustedProxies::default();
    for entry in field.or(Vec::new()).value {
        if entry.value == "unix" {
            proxies.unix = true;
        } else if let Ok(network) = entry.value.parse::<ipnet::IpNet>() {
            if network.prefix_len() == 0 {
                problems
                    .warning(
                        &entry.place,
                        "trusts_everybody",
                        "every caller can then claim any address in X-Forwarded-For",
                    )
                    .help("name only the networks of your own proxies");
            }
            proxies.networks.push(network.trunc());
        } else if let Ok(ip) = entry.value.parse::<std::net::IpAddr>() {
            proxies.networks.push(ip.to_canonical().into());
        } else {
            problems
                .error(
                    &entry.place,
                    "bad_address",
                    "is neither an address nor a network",
                )
                .help("write \"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\" or \"unix\"");
        }
    }
    proxies
}

fn within(
    written: At<u64>,
    bounds: std::ops::RangeInclusive<u64>,
    problems: &mut Problems,
) -> Option<u32> {
    if bounds.contains(&written.value) {
        return u32::try_from(written.value).ok();
    }
    let message = format!("must be between {} and {}", bounds.start(), bounds.end());
    problems.error(&written.place, "out_of_bounds", message);
    None
}

fn is_host_name(text: &str) -> bool {
    text.parse::<http::uri::Authority>()
        .is_ok_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
}

fn available_cores() -> u64 {
    // Honours the cgroup's CPU quota.
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}
