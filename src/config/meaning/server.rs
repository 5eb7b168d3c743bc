//! `[server]` and `[admin]`.

use std::time::Duration;

use super::secrets;
use super::tls;
use super::{Context, count, duration, label, number, size, unique};
use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::settings::{Admin, AdminToken, Rate, Server};
use crate::config::tree::Place;
use crate::config::value::{At, Field};
use crate::net::{AddressHeader, AddressRules, ListenAddress, Networks, TrustedProxies};

/// Timeouts of one step of a connection.
const SHORT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(300);

/// `[server]`, with what other checks need.
pub(crate) struct ReadServer {
    pub(crate) listen: At<ListenAddress>,
    pub(crate) drain_within: At<Duration>,
    pub(crate) meaning: Option<Server>,
}

/// Reads `[server]`.
pub(crate) fn server(written: schema::Server, context: &mut Context<'_>) -> ReadServer {
    let schema::Server {
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
        address_header,
        proxy_protocol,
        allow,
        deny,
        drain_delay,
        drain_within,
        workers,
        tls,
    } = written;
    let seconds = Duration::from_secs;

    let tls = tls::listener(tls, context);
    let problems = &mut *context.problems;
    let addresses = address_rules(allow, deny, problems);
    let trusted_proxies = TrustedProxies {
        networks: proxies(trusted_proxies, problems),
        header: address_header.or(AddressHeader::default()).value,
    };
    let proxy_protocol = proxy_protocol.or(false);
    if proxy_protocol.value && trusted_proxies.networks.is_empty() {
        problems
            .error(
                &proxy_protocol.place,
                "nobody_trusted",
                "nobody is trusted to send a PROXY header",
            )
            .help("name the proxies' networks in server.trusted_proxies");
    }
    let listen = listen.or(ListenAddress::Tcp(([0, 0, 0, 0], 8080).into()));
    let drain_within = duration(
        drain_within,
        seconds(75),
        Duration::from_millis(1)..=seconds(3600),
        problems,
    );
    let meaning = tls.map(|tls| Server {
        listen: listen.value.clone(),
        max_connections: count(max_connections, 10_000, 1..=1_000_000, problems),
        max_in_flight: count(max_in_flight, 1024, 1..=1_000_000, problems),
        header_timeout: duration(header_timeout, seconds(5), SHORT, problems).value,
        body_timeout: duration(body_timeout, seconds(10), SHORT, problems).value,
        min_body_rate: size(min_body_rate, 256, 0..=1 << 20, problems),
        idle_timeout: duration(
            idle_timeout,
            seconds(75),
            Duration::from_millis(1)..=seconds(3600),
            problems,
        )
        .value,
        write_timeout: duration(write_timeout, seconds(10), SHORT, problems).value,
        max_connection_age: duration(
            max_connection_age,
            seconds(3600),
            seconds(1)..=seconds(7 * 24 * 3600),
            problems,
        )
        .value,
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
        trusted_proxies,
        proxy_protocol: proxy_protocol.value,
        addresses,
        tls,
        drain_delay: duration(
            drain_delay,
            seconds(2),
            Duration::ZERO..=seconds(300),
            problems,
        )
        .value,
        drain_within: drain_within.value,
        workers: count(workers, available_cores(), 1..=1024, problems),
    });
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
        allow,
        deny,
        tokens,
        hosts,
    } = written;
    let listen = listen.or(ListenAddress::Tcp(([127, 0, 0, 1], 9901).into()));
    let addresses = address_rules(allow, deny, context.problems);
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
            addresses,
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

fn proxies(field: Field<Vec<At<String>>>, problems: &mut Problems) -> Networks {
    networks(field, problems, |place, problems| {
        problems
            .warning(
                place,
                "trusts_everybody",
                "every caller can then claim any address",
            )
            .help("name only the networks of your own proxies");
    })
}

/// Reads `allow` and `deny`.
pub(crate) fn address_rules(
    allow: Field<Vec<At<String>>>,
    deny: Field<Vec<At<String>>>,
    problems: &mut Problems,
) -> AddressRules {
    AddressRules {
        allow: networks(allow, problems, |_, _| {}),
        deny: networks(deny, problems, |place, problems| {
            problems
                .warning(
                    place,
                    "denies_everybody",
                    "every address of its kind is denied",
                )
                .help("name only the networks that are to be kept out");
        }),
    }
}

/// Reads networks, addresses and the word `unix`; `whole` is told of one that holds every address.
fn networks(
    field: Field<Vec<At<String>>>,
    problems: &mut Problems,
    whole: impl Fn(&Place, &mut Problems),
) -> Networks {
    let mut read = Networks::default();
    for entry in field.or(Vec::new()).value {
        if entry.value == "unix" {
            read.unix = true;
        } else if let Ok(network) = entry.value.parse::<ipnet::IpNet>() {
            if network.prefix_len() == 0 {
                whole(&entry.place, problems);
            }
            read.networks.push(network.trunc());
        } else if let Ok(ip) = entry.value.parse::<std::net::IpAddr>() {
            read.networks.push(ip.to_canonical().into());
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
    read
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
