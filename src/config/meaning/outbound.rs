//! `[outbound]`

pub(super) mod ways;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::{Context, ReadClient, count, duration, paths, routes, secrets, server, size, tls};
use crate::config::Secret;
use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::settings::{
    Account, Confirm, Delivery, Environment, Notify, Outbound, Outbox, Rate,
};
use crate::config::tree::Place;
use crate::config::value::{At, Field};
use crate::net::ListenAddress;
use crate::tiki::Family;

use ways::{Plain, TrustSource, Way};

/// Tiki VIP's base URLs (docs/protocol.md, "Who calls whom").
const PRODUCTION: &str = "https://api.tiki.vn/miniapp/tikivip/";
const SANDBOX: &str = "https://api.tala.xyz/miniapp/tikivip/";

/// `[outbound]`, with what other checks need.
pub(crate) struct ReadOutbound {
    pub(crate) place: Place,
    pub(crate) listen: At<ListenAddress>,
    pub(crate) has_token: bool,
    /// Whether a caller must show a certificate.
    pub(crate) demands_certificate: bool,
    pub(crate) delivery: Delivery,
    /// The clients of its accounts, by index.
    pub(crate) clients: Vec<usize>,
    pub(crate) meaning: Option<Outbound>,
}

/// Reads `[outbound]`, if it is there. The outer `None`: something in it could not even be read.
pub(crate) fn outbound(
    written: Field<schema::Outbound>,
    clients: &[ReadClient],
    context: &mut Context<'_>,
) -> Option<Option<ReadOutbound>> {
    if written.is_absent() {
        return Some(None);
    }
    let At { place, value } = written.written()?;
    let schema::Outbound {
        listen,
        token,
        tls,
        allow,
        deny,
        accounts,
        ca,
        paths,
        body_limit,
        answer_limit,
        max_in_flight,
        connect_timeout,
        timeout,
        forward_headers,
        delivery,
        retry_after,
        longest_pause,
        give_up_after,
        max_bytes,
        keep,
        max_deliveries,
        rate,
        notify_url,
        confirm_within,
        confirm_rate,
    } = value;
    let listen = listen.or(ListenAddress::Tcp(([127, 0, 0, 1], 8090).into()));
    let listen = At {
        place: listen.place,
        value: match listen.value {
            ListenAddress::Unix(path) => ListenAddress::Unix(context.base.join(path)),
            tcp @ ListenAddress::Tcp(_) => tcp,
        },
    };
    let has_token = !token.is_absent();
    let token = read_token(token, context);
    let tls = tls::listener(tls, context);
    let addresses = server::address_rules(allow, deny, context.problems);
    let trust = TrustSource::read(ca, context);
    let (connect_timeout, timeout) = timeouts(connect_timeout, timeout, context.problems);
    let max_deliveries = count(max_deliveries, 16, 1..=1024, context.problems);
    let max_in_flight = count(max_in_flight, 256, 1..=100_000, context.problems);
    let mut way = Way {
        trust,
        connect_timeout,
        timeout,
        connections: max_in_flight.saturating_add(max_deliveries),
    };
    let accounts = read_accounts(accounts, clients, &mut way, context);
    let paths = called_paths(paths, context.problems);
    let (forward_headers, headers_fit) = routes::forwarded(forward_headers, context.problems);
    let headers_fit = headers_fit && token_stays(has_token, &forward_headers, context.problems);
    let body_limit = size(body_limit, 64 << 10, 1..=16 << 20, context.problems);
    let answer_limit = size(answer_limit, 1 << 20, 1..=16 << 20, context.problems);
    let delivery = delivery.or(Delivery::Outbox).value;
    let notify = read_notify(notify_url, &mut way, context.problems);
    let outbox = read_outbox(
        Pauses {
            retry_after,
            longest_pause,
            give_up_after,
            keep,
        },
        max_bytes,
        max_deliveries,
        rate,
        context.problems,
    );
    let confirm = Confirm {
        within: duration(
            confirm_within,
            Duration::from_secs(4),
            Duration::from_millis(100)..=Duration::from_secs(4),
            context.problems,
        )
        .value,
        rate: server::rate(
            confirm_rate,
            Rate {
                per_second: 50,
                burst: 100,
            },
            context.problems,
        ),
    };
    let account_clients = accounts.iter().map(|account| account.client).collect();
    let complete = accounts.complete;
    let demands_certificate = tls
        .as_ref()
        .is_some_and(|tls| tls.as_ref().is_some_and(|tls| tls.demands_certificate));
    let meaning = || {
        Some(Outbound {
            listen: listen.value.clone(),
            token: token?,
            tls: tls.clone()?,
            addresses: addresses.clone(),
            accounts: complete.then(|| accounts.list.into_iter().map(Arc::new).collect())?,
            paths: paths?,
            body_limit,
            answer_limit,
            max_in_flight,
            timeout,
            forward_headers: headers_fit.then(|| names(forward_headers))?,
            delivery,
            outbox: Outbox {
                notify: notify?,
                ..outbox
            },
            confirm,
        })
    };
    Some(Some(ReadOutbound {
        meaning: meaning(),
        place,
        listen,
        has_token,
        demands_certificate,
        delivery,
        clients: account_clients,
    }))
}

fn names(headers: Vec<At<HeaderName>>) -> Vec<HeaderName> {
    headers.into_iter().map(|name| name.value).collect()
}

/// The inner `None`: there is none.
fn read_token(
    field: Field<schema::SecretSource>,
    context: &mut Context<'_>,
) -> Option<Option<Secret>> {
    if field.is_absent() {
        return Some(None);
    }
    let At { place, value } = field.written()?;
    let read = secrets::read(value, &place, context)?;
    server::usable_token(&read, context.problems)?;
    Some(Some(read.secret))
}

/// Whoever forwards `Authorization` would send the gate's own token to Tiki.
fn token_stays(has_token: bool, forwarded: &[At<HeaderName>], problems: &mut Problems) -> bool {
    let authorization = forwarded
        .iter()
        .find(|name| name.value == http::header::AUTHORIZATION);
    let Some(name) = authorization.filter(|_| has_token) else {
        return true;
    };
    let message = "carries outbound.token, which must not leave";
    problems.error(&name.place, "owned_header", message);
    false
}

fn timeouts(
    connect_timeout: Field<Duration>,
    timeout: Field<Duration>,
    problems: &mut Problems,
) -> (Duration, Duration) {
    let least = Duration::from_millis(1);
    let connect = duration(
        connect_timeout,
        Duration::from_secs(5),
        least..=Duration::from_secs(60),
        problems,
    );
    // Tiki gives its own calls fifteen seconds.
    let whole = duration(
        timeout,
        Duration::from_secs(15),
        least..=Duration::from_secs(60),
        problems,
    );
    (connect.value.min(whole.value), whole.value)
}

/// The paths that may be called, each with its slash. The inner `None`: all.
fn called_paths(
    field: Field<Vec<At<String>>>,
    problems: &mut Problems,
) -> Option<Option<Vec<String>>> {
    if field.is_absent() {
        return Some(None);
    }
    let written = field.written()?.value;
    let asked = written.len();
    let read: Vec<String> = written
        .into_iter()
        .filter_map(|entry| {
            let with_slash = format!("/{}", entry.value.trim_start_matches('/'));
            let entry = At {
                place: entry.place,
                value: with_slash,
            };
            paths::route_path(entry, problems).map(|path| path.value)
        })
        .collect();
    (read.len() == asked).then_some(Some(read))
}

struct Pauses {
    retry_after: Field<Duration>,
    longest_pause: Field<Duration>,
    give_up_after: Field<Duration>,
    keep: Field<Duration>,
}

fn read_outbox(
    pauses: Pauses,
    max_bytes: Field<crate::config::value::ByteSize>,
    max_deliveries: usize,
    rate: Field<schema::Rate>,
    problems: &mut Problems,
) -> Outbox {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let least = Duration::from_millis(1);
    let retry_after = duration(
        pauses.retry_after,
        Duration::from_secs(1),
        least..=DAY,
        problems,
    );
    let longest_pause = duration(
        pauses.longest_pause,
        Duration::from_secs(3600),
        least..=DAY,
        problems,
    );
    if longest_pause.value < retry_after.value {
        let message = "must not be shorter than retry_after";
        problems.error(&longest_pause.place, "bad_deadlines", message);
    }
    let give_up_after = duration(
        pauses.give_up_after,
        2 * DAY,
        Duration::from_secs(1)..=30 * DAY,
        problems,
    );
    let keep = duration(
        pauses.keep,
        30 * DAY,
        // A backend posts again for as long as it may be told to.
        2 * DAY..=1000 * DAY,
        problems,
    );
    Outbox {
        retry_after: retry_after.value,
        longest_pause: longest_pause.value,
        give_up_after: give_up_after.value,
        max_bytes: size(max_bytes, 256 << 20, 64 << 10..=64 << 30, problems),
        keep: keep.value,
        max_deliveries,
        rate: server::rate(
            rate,
            Rate {
                per_second: 50,
                burst: 100,
            },
            problems,
        ),
        notify: None,
    }
}

/// The accounts as far as they are right, and whether all are.
struct Accounts {
    list: Vec<Account>,
    complete: bool,
}

impl Accounts {
    fn iter(&self) -> std::slice::Iter<'_, Account> {
        self.list.iter()
    }
}

fn read_accounts(
    field: Field<Vec<At<schema::Account>>>,
    clients: &[ReadClient],
    way: &mut Way,
    context: &mut Context<'_>,
) -> Accounts {
    let nothing = Accounts {
        list: Vec::new(),
        complete: false,
    };
    if field.is_absent() || field.peek().is_some_and(Vec::is_empty) {
        context
            .problems
            .error(&field.place, "missing", "at least one account is needed")
            .help(
                "write [[outbound.accounts]] with client = \"...\", the name of one of [[clients]]",
            );
        return nothing;
    }
    let Some(written) = field.written() else {
        return nothing;
    };
    let asked = written.value.len();
    let mut list: Vec<Account> = Vec::new();
    for entry in written.value {
        let place = entry.place.clone();
        let Some(account) = read_account(entry, clients, way, context.problems) else {
            continue;
        };
        if list.iter().any(|other| other.client == account.client) {
            let message = "another account has this client already, and callers name the client";
            context.problems.error(&place, "duplicate", message);
            continue;
        }
        list.push(account);
    }
    let complete = list.len() == asked;
    Accounts { list, complete }
}

fn read_account(
    written: At<schema::Account>,
    clients: &[ReadClient],
    way: &mut Way,
    problems: &mut Problems,
) -> Option<Account> {
    let schema::Account {
        client,
        environment,
        base_url,
        family,
    } = written.value;
    let client = account_client(client, clients, problems);
    let environment = environment_of(environment, client, clients, problems);
    let family = family.or(Family::TikiVip).value;
    let base = match base_url.written() {
        Some(base) => base,
        None => At {
            place: written.place,
            value: match environment {
                Environment::Production => PRODUCTION.to_owned(),
                Environment::Sandbox => SANDBOX.to_owned(),
            },
        },
    };
    let name = client.and_then(|index| clients.get(index)?.shown());
    let name = format!("tiki-{}", name.unwrap_or_default());
    let target = way.to(&base, name, Plain::OnLoopback, problems)?;
    let base_path = target.path.trim_end_matches('/');
    if base_path.contains('?') {
        let message = "a base URL has no query";
        problems.error(&base.place, "bad_url", message);
        return None;
    }
    Some(Account {
        client: client?,
        family,
        base_url: base.value.trim_end_matches('/').to_owned(),
        base_path: base_path.to_owned(),
        upstream: target.upstream,
    })
}

fn account_client(
    field: Field<String>,
    clients: &[ReadClient],
    problems: &mut Problems,
) -> Option<usize> {
    let written = field.required(problems)?;
    let found = clients
        .iter()
        .position(|client| client.shown() == Some(written.value.as_str()));
    if found.is_none() && !clients.is_empty() {
        let names = clients.iter().filter_map(ReadClient::shown);
        routes::unknown_name(&written, "client", names, problems);
    }
    found
}

/// The account's environment is its client's: with the other one's secret Tiki would believe nothing.
fn environment_of(
    field: Field<Environment>,
    client: Option<usize>,
    clients: &[ReadClient],
    problems: &mut Problems,
) -> Environment {
    let clients_own = client
        .and_then(|index| clients.get(index))
        .map(|client| client.environment);
    let Some(written) = field.written() else {
        return clients_own.unwrap_or(Environment::Production);
    };
    if clients_own.is_some_and(|own| own != written.value) {
        problems
            .error(
                &written.place,
                "mixed_environments",
                "is not the environment of this client",
            )
            .help(
                "write the same environment for the client under [[clients]], or leave it out here",
            );
    }
    written.value
}

/// The inner `None`: there is none.
fn read_notify(
    field: Field<String>,
    way: &mut Way,
    problems: &mut Problems,
) -> Option<Option<Notify>> {
    if field.is_absent() {
        return Some(None);
    }
    let url = field.written()?;
    let target = way.to(&url, "notify".to_owned(), Plain::Anywhere, problems)?;
    Some(Some(Notify {
        upstream: target.upstream,
        path: target.path,
        url: url.value,
    }))
}
