//! `[upstreams.NAME]`

use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, HeaderValue};

use super::{Context, count, duration, headers, label, secrets};
use crate::config::Secret;
use crate::config::problem::Problems;
use crate::config::schema::{self, HeaderSource};
use crate::config::settings::{Endpoint, Upstream};
use crate::config::tree::Place;
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
    } = written;
    let problems = &mut *context.problems;
    let name_fits = label(name.clone(), problems).is_some();
    for file in [ca, client_certificate, client_key] {
        if !file.is_absent() {
            no_tls(&file.place, problems);
        }
    }
    let target = url
        .required(problems)
        .and_then(|url| endpoint(&url, context));
    let problems = &mut *context.problems;
    let host = host_header(host, target.as_ref(), problems);
    let deadlines = Deadlines::read(connect_timeout, answer_within, settle_within, problems);
    let max_in_flight = count(max_in_flight, 64, 1..=100_000, problems);
    let (header_names, set_headers) = fixed_headers(set_headers, context);

    let settle_within = deadlines.settle_within;
    let meaning = || {
        Some(Upstream {
            name: name_fits.then(|| name.value.clone())?,
            endpoint: target?.endpoint,
            host: host?,
            connect_timeout: deadlines.connect_timeout,
            answer_within: deadlines.answer_within,
            settle_within,
            max_in_flight,
            set_headers: set_headers?,
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

/// Reads `http://host[:port]` or `unix:/path`. The url itself is not shown: it may hold a password.
fn endpoint(url: &At<String>, context: &mut Context<'_>) -> Option<Target> {
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
    if url.value.starts_with("https://") {
        no_tls(&url.place, context.problems);
        return None;
    }
    let target = http_target(&url.value);
    if target.is_none() {
        context
            .problems
            .error(&url.place, "bad_url", "is no backend's address")
            .help("write http://host:port or unix:/path, without user, path and query; the path is upstream_path of the route");
    }
    target
}

fn http_target(url: &str) -> Option<Target> {
    let rest = url.strip_prefix("http://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let HostPort { host, port } = host_port(rest, 80)?;
    Some(Target {
        endpoint: Endpoint::Tcp { host, port },
        host: rest.to_owned(),
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
    target: Option<&Target>,
    problems: &mut Problems,
) -> Option<HeaderValue> {
    let Some(written) = field.written() else {
        return target.and_then(|target| HeaderValue::from_str(&target.host).ok());
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

fn no_tls(place: &Place, problems: &mut Problems) {
    problems.not_available(
        place,
        "TLS towards the backend is",
        "run the gate beside the backend and use http:// or unix:, or put a local TLS proxy between them",
    );
}

/// The names as far as they are valid, and all headers if everything about them is right.
fn fixed_headers(
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
