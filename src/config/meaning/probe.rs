//! `[routes.idempotency.probe]`: a look at the backend that takes the place of a person's.

use std::time::Duration;

use http::StatusCode;

use super::idempotency::pointer;
use super::{duration, paths};
use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::settings::{Condition, OnUnknown, Probe, ProbePart, ProbeSign};
use crate::config::tree::Place;
use crate::config::value::{At, Field, nearest};
use crate::tiki::{KeySpec, PayloadKind, kept_fields};

const USUAL_TIMEOUT: Duration = Duration::from_secs(3);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Statuses about the request, its sender or the server, and not about what was asked for.
const SAY_NOTHING: [u16; 9] = [401, 403, 405, 407, 408, 421, 425, 426, 429];

/// What the table means. The outer `None`: something is wrong, and was reported.
pub(super) fn probe(
    field: Field<schema::Probe>,
    payload: PayloadKind,
    spec: Option<&KeySpec>,
    on_unknown: OnUnknown,
    problems: &mut Problems,
) -> Option<Option<Probe>> {
    if field.is_absent() {
        return Some(None);
    }
    let At { place, value } = field.written()?;
    let schema::Probe {
        path,
        timeout,
        applied,
        not_applied,
    } = value;
    if on_unknown == OnUnknown::Resend {
        problems
            .warning(
                &place,
                "unused_probe",
                "is never used: what nobody knows of is sent again on this route",
            )
            .help("take it out, or write on_unknown = \"hold\"");
    }
    let path = path
        .required(problems)
        .and_then(|path| template(&path, payload, spec, problems));
    let bounds = SHORTEST_TIMEOUT..=LONGEST_TIMEOUT;
    let timeout = duration(timeout, USUAL_TIMEOUT, bounds, problems).value;
    let applied = match applied.is_absent() {
        true => {
            problems
                .error(&applied.place, "missing", "is required")
                .help("say how the backend's answer looks when the call was applied, such as { status = 200, pointer = \"/state\", equals = \"done\" }");
            None
        }
        false => signs(applied, "applied", problems),
    };
    let not_applied = match not_applied.is_absent() {
        true => Some(Vec::new()),
        false => signs(not_applied, "not_applied", problems),
    };
    let (applied, not_applied) = (applied?, not_applied?);
    warn_of_bare_signs(&not_applied, problems);
    apart(&applied, &not_applied, problems)?;
    let plain = |signs: Vec<At<ProbeSign>>| signs.into_iter().map(|sign| sign.value).collect();
    Some(Some(Probe {
        path: path?,
        timeout,
        applied: plain(applied),
        not_applied: plain(not_applied),
    }))
}

/// Takes `/refunds/{key}?txn={transaction_id}` apart.
fn template(
    written: &At<String>,
    payload: PayloadKind,
    spec: Option<&KeySpec>,
    problems: &mut Problems,
) -> Option<Vec<ProbePart>> {
    let Some(parts) = split(&written.value) else {
        problems
            .error(
                &written.place,
                "bad_path",
                "holds a `{` or `}` that is no part of a placeholder",
            )
            .help("a placeholder is a name in braces, such as {key}; a brace of the path itself is written %7B or %7D");
        return None;
    };
    // What stands for a placeholder is percent-encoded, so that any letter stands for it here.
    let sample: String = parts
        .iter()
        .map(|part| match part {
            Piece::Text(text) => *text,
            Piece::Name(_) => "x",
        })
        .collect();
    paths::upstream_path(
        At {
            place: written.place.clone(),
            value: sample,
        },
        problems,
    )?;
    let asked = parts.len();
    let parts: Vec<ProbePart> = parts
        .into_iter()
        .filter_map(|part| match part {
            Piece::Text(text) => Some(ProbePart::Text(text.to_owned())),
            Piece::Name("key") => Some(ProbePart::Key),
            Piece::Name(name) => field(name, payload, &written.place, problems),
        })
        .collect();
    if parts.len() != asked {
        return None;
    }
    tells_calls_apart(&parts, spec, &written.place, problems)?;
    Some(parts)
}

enum Piece<'t> {
    Text(&'t str),
    Name(&'t str),
}

fn split(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((before, after)) = rest.split_once('{') else {
            pieces.push(Piece::Text(rest));
            break;
        };
        let (name, after) = after.split_once('}')?;
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        pieces.push(Piece::Name(name));
        rest = after;
    }
    let stray = |piece: &Piece<'_>| match piece {
        Piece::Text(text) => text.contains('}'),
        Piece::Name(name) => name.is_empty() || name.contains('{'),
    };
    (!pieces.iter().any(stray)).then_some(pieces)
}

fn field(
    name: &str,
    payload: PayloadKind,
    place: &Place,
    problems: &mut Problems,
) -> Option<ProbePart> {
    let known = kept_fields(payload);
    if known.contains(&name) {
        return Some(ProbePart::Field(name.to_owned()));
    }
    let names = || ["key"].into_iter().chain(known.iter().copied());
    let message = format!(
        "`{{{}}}` is no placeholder of payload \"{}\"",
        name.escape_debug(),
        payload.as_str()
    );
    let help = match nearest(name, names()) {
        Some(name) => format!("did you mean `{{{name}}}`?"),
        None => {
            let list: Vec<String> = names().map(|name| format!("{{{name}}}")).collect();
            format!("known here: {}", list.join(", "))
        }
    };
    problems.error(place, "unknown_name", message).help(help);
    None
}

/// A look that names no call would be answered the same for all of them.
fn tells_calls_apart(
    parts: &[ProbePart],
    spec: Option<&KeySpec>,
    place: &Place,
    problems: &mut Problems,
) -> Option<()> {
    if !parts.iter().any(|part| !matches!(part, ProbePart::Text(_))) {
        problems
            .error(
                place,
                "bad_path",
                "names nothing of the call, so that the answer would be the same for every call",
            )
            .help("put the key into it: /refunds/{key}");
        return None;
    }
    let Some(spec) = spec else {
        return Some(());
    };
    // Any field of the key will do: a backend may keep books by one of several.
    let key = spec.key_text();
    let of_key = |name: &str| {
        let pointer = format!("/{}", name.replace('.', "/"));
        key.split([',', '|']).any(|part| part == pointer)
    };
    let names_key = parts.iter().any(|part| match part {
        ProbePart::Text(_) => false,
        ProbePart::Key => true,
        ProbePart::Field(name) => of_key(name),
    });
    if !names_key {
        problems
            .warning(
                place,
                "vague_probe",
                "names no field of the key: the backend may answer about another call of the same payment",
            )
            .help("put {key} into it");
    }
    Some(())
}

fn signs(
    field: Field<schema::Signs>,
    name: &str,
    problems: &mut Problems,
) -> Option<Vec<At<ProbeSign>>> {
    let At { place, value } = field.written()?;
    let schema::Signs(written) = value;
    if written.is_empty() {
        problems.error(
            &place,
            "empty",
            format!("`{name}` needs at least one sign, or is left out"),
        );
        return None;
    }
    let asked = written.len();
    let mut signs: Vec<At<ProbeSign>> = Vec::new();
    for one in written {
        let Some(sign) = sign(one, problems) else {
            continue;
        };
        if signs.iter().any(|known| known.value == sign.value) {
            problems.error(&sign.place, "duplicate", "this sign is listed already");
            continue;
        }
        signs.push(sign);
    }
    (signs.len() == asked).then_some(signs)
}

fn sign(written: At<schema::Sign>, problems: &mut Problems) -> Option<At<ProbeSign>> {
    let At { place, value } = written;
    let schema::Sign {
        status,
        pointer: written,
        equals,
    } = value;
    let status = status.required(problems);
    let status = status.and_then(|status| {
        let known = u16::try_from(status.value)
            .ok()
            .filter(|number| (200..=599).contains(number))
            .and_then(|number| StatusCode::from_u16(number).ok());
        if known.is_none() {
            let message = "must be a status between 200 and 599";
            problems.error(&status.place, "bad_status", message);
        }
        known
    });
    let when = match (written.is_absent(), equals.is_absent()) {
        (true, true) => None,
        (false, false) => {
            let pointer = pointer(&written.written()?, problems)?;
            let schema::Scalar(equals) = equals.written()?.value;
            Some(Condition { pointer, equals })
        }
        (true, false) => {
            problems.error(&written.place, "missing", "is required beside `equals`");
            return None;
        }
        (false, true) => {
            problems.error(&equals.place, "missing", "is required beside `pointer`");
            return None;
        }
    };
    let value = ProbeSign {
        status: status?,
        when,
    };
    tells_something(&place, &value, problems)?;
    Some(At { place, value })
}

/// A status that any trouble on the way gives as well says nothing of the call.
fn tells_something(place: &Place, sign: &ProbeSign, problems: &mut Problems) -> Option<()> {
    let status = sign.status.as_u16();
    let trouble = matches!(status, 300..=399 | 500..=599) || SAY_NOTHING.contains(&status);
    if sign.when.is_none() && trouble {
        problems
            .error(
                place,
                "unclear_sign",
                format!("{status} alone says nothing of the call: a backend in trouble, or one that doesn't let the gate in, answers so too"),
            )
            .help("add what its JSON says: pointer and equals");
        return None;
    }
    Some(())
}

/// "Not applied" sends money again: a bare status is thin ground for that.
fn warn_of_bare_signs(not_applied: &[At<ProbeSign>], problems: &mut Problems) {
    for sign in not_applied.iter().filter(|sign| sign.value.when.is_none()) {
        let status = sign.value.status.as_u16();
        let who = match status {
            404 => {
                "a backend that doesn't know the path, or another server in its place, answers 404 too"
            }
            200..=299 => {
                "whatever the backend says in its body, the call would count as not applied"
            }
            _ => "a backend that takes the request itself for wrong may answer so too",
        };
        problems
            .warning(
                &sign.place,
                "bare_sign",
                format!("{status} alone lets the call be sent again: {who}"),
            )
            .help("add what its JSON says: pointer and equals");
    }
}

/// One answer can't mean both.
fn apart(
    applied: &[At<ProbeSign>],
    not_applied: &[At<ProbeSign>],
    problems: &mut Problems,
) -> Option<()> {
    let mut apart = Some(());
    for sign in not_applied {
        let same = applied.iter().any(|other| other.value == sign.value);
        let covered = applied
            .iter()
            .any(|other| other.value.status == sign.value.status && other.value.when.is_none());
        if same || covered {
            let message = match same {
                true => "this sign is in `applied` too",
                false => {
                    "never counts: a sign in `applied` takes every answer of this status, whatever its JSON says"
                }
            };
            problems.error(&sign.place, "contradiction", message);
            apart = None;
        }
    }
    apart
}
