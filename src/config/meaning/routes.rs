//! `[[routes]]`

use std::collections::HashSet;

use http::{HeaderName, Method, StatusCode};

use super::idempotency::{self, ReadIdempotency, pointer};
use super::signature;
use super::{ReadClient, ReadUpstream, headers, label, paths, server, size, unique};
use crate::config::problem::Problems;
use crate::config::schema::{self, MethodWord};
use crate::config::settings::{AnswerSource, Condition, OutcomeRules, Route, SignedPath};
use crate::config::tree::Place;
use crate::config::value::{At, Field, nearest};
use crate::tiki::{Family, PayloadKind, Window};

/// Answers that decline for good (docs/configuration.md, "What an answer means").
const FINAL_STATUSES: &[u64] = &[400, 409, 410, 422];
/// Answers that say "not applied, try again".
const RETRY_STATUSES: &[u64] = &[401, 403, 404, 405, 408, 421, 425, 426, 429];

/// What routes refer to.
pub(crate) struct Surroundings<'a> {
    pub(crate) upstreams: &'a [ReadUpstream],
    pub(crate) clients: &'a [ReadClient],
    pub(crate) families: &'a [Family],
    /// The windows of `[signature]`.
    pub(crate) windows: [Window; 2],
}

/// A route, with what other checks need.
pub(crate) struct ReadRoute {
    pub(crate) name: Option<At<String>>,
    pub(crate) endpoint: Option<(Method, At<String>)>,
    pub(crate) payload: Option<PayloadKind>,
    pub(crate) upstream: Option<usize>,
    pub(crate) upstream_place: Place,
    pub(crate) clients: Callers,
    pub(crate) forward_headers: Vec<At<HeaderName>>,
    pub(crate) idempotency: Option<ReadIdempotency>,
    /// A GET: the path that its signature is over.
    pub(crate) signed_as: Option<At<String>>,
    /// Statuses written as "not applied" that by themselves don't say so.
    pub(crate) unclear_retries: Vec<At<u64>>,
    /// Where it says that Tiki is asked first, if it is.
    pub(crate) confirm: Option<Place>,
    pub(crate) meaning: Option<Route>,
}

/// Who may call a route.
pub(crate) struct Callers {
    pub(crate) place: Place,
    /// Into the list of clients.
    pub(crate) indexes: Vec<usize>,
    /// Whether every name that was written is a client's.
    pub(crate) complete: bool,
}

/// Reads all routes.
pub(crate) fn routes(
    written: Field<Vec<At<schema::Route>>>,
    around: &Surroundings<'_>,
    problems: &mut Problems,
) -> Vec<ReadRoute> {
    let wrong = !written.is_absent() && written.peek().is_none();
    let written = written.or(Vec::new());
    if written.value.is_empty() && !wrong {
        problems
            .error(&written.place, "missing", "at least one route is needed")
            .help("write [[routes]] with name, path and payload");
    }
    let routes: Vec<ReadRoute> = written
        .value
        .into_iter()
        .map(|route| read(route, around, problems))
        .collect();
    let names = routes.iter().filter_map(|route| route.name.as_ref());
    let names = names.map(|name| (&name.place, name.value.as_str()));
    unique(names, "route", problems);
    routes
}

fn read(
    written: At<schema::Route>,
    around: &Surroundings<'_>,
    problems: &mut Problems,
) -> ReadRoute {
    let schema::Route {
        name,
        path,
        method,
        payload,
        upstream,
        upstream_path,
        clients,
        allow,
        deny,
        max_age,
        max_ahead,
        body_limit,
        answer,
        answer_limit,
        forward_headers,
        strip_signature,
        signed_path,
        final_statuses,
        retry_statuses,
        success_when,
        failed_when,
        confirm,
        idempotency,
    } = written.value;
    let name = name.required(problems);
    let name_fits = name
        .clone()
        .and_then(|name| label(name, problems))
        .is_some();
    let path = path
        .required(problems)
        .and_then(|path| paths::route_path(path, problems));
    let method = method.or(MethodWord::Post);
    let payload = payload.required(problems);
    let upstream_place = upstream.place.clone();
    let upstream = upstream_index(upstream, around.upstreams, problems);
    let upstream_path = match upstream_path.written() {
        Some(written) => paths::upstream_path(written, problems).map(|path| path.value),
        None => path.as_ref().map(|path| path.value.clone()),
    };
    let clients = client_indexes(clients, around.clients, problems);
    let addresses = server::address_rules(allow, deny, problems);
    let windows = signature::windows(max_age, max_ahead, around.windows, problems);
    let body_limit = size(body_limit, 64 << 10, 1..=16 << 20, problems);
    let answer = answer.or(AnswerSource::Backend).value;
    let answer_limit = size(answer_limit, 64 << 10, 1..=1 << 20, problems);
    let (forward_headers, headers_fit) = forwarded(forward_headers, problems);
    let strip_signature = strip_signature.or(false).value;
    let signed_place = signed_path.place.clone();
    let signed_path = signed(signed_path, path.as_ref(), method.value, problems);
    let signed_as = (method.value == MethodWord::Get)
        .then(|| signed_as(signed_place, signed_path.as_ref()?, path.as_ref()?))
        .flatten();
    let unclear_retries = unclear(&retry_statuses);
    let outcome = outcome(
        final_statuses,
        retry_statuses,
        success_when,
        failed_when,
        problems,
    );
    let confirm = confirmed(confirm, payload.as_ref(), problems);
    let keyed = payload.as_ref().and_then(|payload| {
        fits_method(payload, &method, &idempotency, problems)?;
        let accepted = accepted_windows(around.families, windows);
        idempotency::idempotency(idempotency, payload.value, &accepted, problems)
    });

    let payload = payload.map(|payload| payload.value);
    let method = http_method(method.value);
    let endpoint = path.as_ref().map(|path| (method.clone(), path.clone()));
    let (keyed, idempotency_fits) = match keyed {
        Some(keyed) => (keyed, true),
        None => (None, false),
    };
    let meaning = || {
        Some(Route {
            name: name_fits.then(|| name.as_ref().map(|name| name.value.clone()))??,
            path: path?.value,
            method,
            payload: payload?,
            upstream: upstream?,
            upstream_path: upstream_path?,
            clients: clients.indexes.clone(),
            addresses,
            windows,
            body_limit,
            answer,
            answer_limit,
            forward_headers: headers_fit.then(|| {
                forward_headers
                    .iter()
                    .map(|name| name.value.clone())
                    .collect()
            })?,
            strip_signature,
            signed_path: signed_path?,
            outcome: outcome?,
            confirm: confirm.is_some(),
            idempotency: idempotency_fits
                .then(|| keyed.as_ref().map(|keyed| keyed.meaning.clone()))?,
        })
    };
    ReadRoute {
        meaning: meaning(),
        name,
        endpoint,
        payload,
        upstream,
        upstream_place,
        clients,
        forward_headers,
        idempotency: keyed,
        signed_as,
        unclear_retries,
        confirm,
    }
}

/// Where the key stands, if Tiki is to be asked about what the route's calls say.
fn confirmed(
    field: Field<bool>,
    payload: Option<&At<PayloadKind>>,
    problems: &mut Problems,
) -> Option<Place> {
    let At { place, value } = field.written()?;
    if !value {
        return None;
    }
    if payload.is_some_and(|payload| payload.value != PayloadKind::TransactionIpn) {
        problems
            .error(
                &place,
                "bad_confirm",
                "only a transaction's status can be asked",
            )
            .help("take the key out, or write payload = \"transaction_ipn\"");
    }
    Some(place)
}

fn http_method(word: MethodWord) -> Method {
    match word {
        MethodWord::Get => Method::GET,
        MethodWord::Post => Method::POST,
        MethodWord::Put => Method::PUT,
        MethodWord::Patch => Method::PATCH,
        MethodWord::Delete => Method::DELETE,
    }
}

/// Keys and payloads are read from a signed body, and a GET has none.
fn fits_method(
    payload: &At<PayloadKind>,
    method: &At<MethodWord>,
    idempotency: &Field<schema::Idempotency>,
    problems: &mut Problems,
) -> Option<()> {
    if method.value != MethodWord::Get {
        return Some(());
    }
    if payload.value != PayloadKind::Any {
        problems
            .error(
                &payload.place,
                "get_payload",
                "a GET has no body, and so no payload of this type",
            )
            .help("use payload = \"any\", or another method");
        return None;
    }
    if !idempotency.is_absent() {
        problems
            .error(
                &idempotency.place,
                "get_key",
                "a GET has no body to read a key from",
            )
            .help("take [routes.idempotency] out: a GET must not change anything");
        return None;
    }
    Some(())
}

fn accepted_windows(families: &[Family], windows: [Window; 2]) -> Vec<Window> {
    Family::ALL
        .into_iter()
        .zip(windows)
        .filter(|(family, _)| families.contains(family))
        .map(|(_, window)| window)
        .collect()
}

fn upstream_index(
    field: Field<String>,
    upstreams: &[ReadUpstream],
    problems: &mut Problems,
) -> Option<usize> {
    if field.is_absent() {
        return match upstreams {
            [] => None,
            [_] => Some(0),
            [_, _, ..] => {
                let message = "is required, since there are several upstreams";
                problems.error(&field.place, "missing", message);
                None
            }
        };
    }
    let written = field.written()?;
    let found = upstreams
        .iter()
        .position(|upstream| upstream.name.value == written.value);
    // Where there are none, that is what was reported.
    if found.is_none() && !upstreams.is_empty() {
        let names = upstreams
            .iter()
            .map(|upstream| upstream.name.value.as_str());
        unknown_name(&written, "upstream", names, problems);
    }
    found
}

fn client_indexes(
    field: Field<Vec<At<String>>>,
    clients: &[ReadClient],
    problems: &mut Problems,
) -> Callers {
    let place = field.place.clone();
    let Some(written) = field.written() else {
        return Callers {
            place,
            indexes: (0..clients.len()).collect(),
            complete: true,
        };
    };
    let mut indexes = Vec::new();
    let mut complete = true;
    for entry in written.value {
        let found = clients
            .iter()
            .position(|client| client.shown() == Some(entry.value.as_str()));
        match found {
            Some(index) if indexes.contains(&index) => {
                problems.error(&entry.place, "duplicate", "this client is listed already");
            }
            Some(index) => indexes.push(index),
            // Where there are none, that is what was reported.
            None if clients.is_empty() => {}
            None => {
                complete = false;
                let names = clients.iter().filter_map(ReadClient::shown);
                unknown_name(&entry, "client", names, problems);
            }
        }
    }
    Callers {
        place,
        indexes,
        complete,
    }
}

/// Reports a name that nothing has.
pub(super) fn unknown_name<'n>(
    written: &At<String>,
    what: &str,
    known: impl Iterator<Item = &'n str>,
    problems: &mut Problems,
) {
    let message = format!("there is no {what} of this name");
    let help = nearest(&written.value, known).map(|name| format!("did you mean \"{name}\"?"));
    let problem = problems.error(&written.place, "unknown_name", message);
    if let Some(help) = help {
        problem.help(help);
    }
}

/// Header names to be passed on, and whether all of them can be.
pub(super) fn forwarded(
    field: Field<Vec<At<String>>>,
    problems: &mut Problems,
) -> (Vec<At<HeaderName>>, bool) {
    let written = field.or(Vec::new()).value;
    let asked = written.len();
    let mut names: Vec<At<HeaderName>> = Vec::new();
    for entry in written {
        let Some(name) = headers::forwardable(&entry, problems) else {
            continue;
        };
        if names.iter().any(|known| known.value == name) {
            problems.error(&entry.place, "duplicate", "this header is listed already");
            continue;
        }
        names.push(At {
            place: entry.place,
            value: name,
        });
    }
    let fit = names.len() == asked;
    (names, fit)
}

fn signed(
    field: Field<schema::SignedPath>,
    path: Option<&At<String>>,
    method: MethodWord,
    problems: &mut Problems,
) -> Option<SignedPath> {
    if field.is_absent() {
        return Some(SignedPath::default());
    }
    let At { place, value } = field.written()?;
    let schema::SignedPath { strip, add } = value;
    let signed = SignedPath {
        strip: strip.or(String::new()).value,
        add: add.or(String::new()).value,
    };
    if signed == SignedPath::default() {
        return Some(signed);
    }
    if method != MethodWord::Get {
        let message = "only a GET's path is signed";
        problems.error(&place, "bad_signed_path", message);
        return None;
    }
    let path = path?;
    let Some(left) = path.value.strip_prefix(&signed.strip) else {
        let message = "`strip` is no prefix of the route's path";
        problems.error(&place, "bad_signed_path", message);
        return None;
    };
    paths::route_path(
        At {
            place,
            value: format!("{}{left}", signed.add),
        },
        problems,
    )?;
    Some(signed)
}

fn signed_as(place: Place, signed: &SignedPath, path: &At<String>) -> Option<At<String>> {
    let left = path.value.strip_prefix(&signed.strip)?;
    let value = format!("{}{left}", signed.add);
    Some(At { place, value })
}

/// Redirects and server errors among the statuses that were written.
fn unclear(retry_statuses: &Field<Vec<At<u64>>>) -> Vec<At<u64>> {
    let written = retry_statuses.peek().into_iter().flatten();
    written
        .filter(|status| matches!(status.value, 300..=399 | 500..=599))
        .cloned()
        .collect()
}

fn outcome(
    final_statuses: Field<Vec<At<u64>>>,
    retry_statuses: Field<Vec<At<u64>>>,
    success_when: Field<schema::Condition>,
    failed_when: Field<schema::Condition>,
    problems: &mut Problems,
) -> Option<OutcomeRules> {
    let final_written = !final_statuses.is_absent();
    let retry_written = !retry_statuses.is_absent();
    let finals = statuses(final_statuses, FINAL_STATUSES, 400..=499, problems);
    let retries = statuses(retry_statuses, RETRY_STATUSES, 300..=599, problems);
    let success_when = condition(success_when, problems);
    let failed_when = condition(failed_when, problems);
    let (mut finals, mut retries) = (finals?, retries?);
    let both: HashSet<StatusCode> = finals
        .iter()
        .map(|status| status.value)
        .filter(|status| retries.iter().any(|other| other.value == *status))
        .collect();
    // A list that was written wins over the other's default.
    if final_written && retry_written {
        for status in retries.iter().filter(|status| both.contains(&status.value)) {
            let message = "this status is in final_statuses too";
            problems.error(&status.place, "bad_status", message);
        }
    } else if final_written {
        retries.retain(|status| !both.contains(&status.value));
    } else {
        finals.retain(|status| !both.contains(&status.value));
    }
    let plain = |list: Vec<At<StatusCode>>| list.into_iter().map(|status| status.value).collect();
    Some(OutcomeRules {
        success_when: success_when?,
        failed_when: failed_when?,
        final_statuses: plain(finals),
        retry_statuses: plain(retries),
    })
}

fn statuses(
    field: Field<Vec<At<u64>>>,
    default: &[u64],
    bounds: std::ops::RangeInclusive<u64>,
    problems: &mut Problems,
) -> Option<Vec<At<StatusCode>>> {
    let place = field.place.clone();
    let written = match field.written() {
        Some(written) => written.value,
        None => default
            .iter()
            .map(|status| At {
                place: place.clone(),
                value: *status,
            })
            .collect(),
    };
    let asked = written.len();
    let mut statuses: Vec<At<StatusCode>> = Vec::new();
    for entry in written {
        let status = u16::try_from(entry.value)
            .ok()
            .and_then(|number| StatusCode::from_u16(number).ok())
            .filter(|_| bounds.contains(&entry.value));
        let Some(status) = status else {
            let message = format!(
                "must be a status between {} and {}",
                bounds.start(),
                bounds.end()
            );
            problems.error(&entry.place, "bad_status", message);
            continue;
        };
        statuses.push(At {
            place: entry.place,
            value: status,
        });
    }
    (statuses.len() == asked).then_some(statuses)
}

/// The outer `None`: something is wrong, and was reported.
fn condition(
    field: Field<schema::Condition>,
    problems: &mut Problems,
) -> Option<Option<Condition>> {
    if field.is_absent() {
        return Some(None);
    }
    let schema::Condition {
        pointer: written,
        equals,
    } = field.written()?.value;
    let written = written.required(problems);
    let equals = equals.required(problems);
    let pointer = pointer(&written?, problems)?;
    let schema::Scalar(equals) = equals?.value;
    Some(Some(Condition { pointer, equals }))
}
