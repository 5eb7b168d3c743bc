//! `[routes.idempotency]`

use std::time::Duration;

use super::{duration, label, probe};
use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::settings::{Idempotency, OnUnknown, PossibleDuplicate, StaleEvents};
use crate::config::tree::Place;
use crate::config::units::format_duration;
use crate::config::value::{At, Field};
use crate::tiki::{KeySpec, PayloadKind, Pointer, Window};

/// Tiki's last re-send comes this long after the first call (docs/protocol.md, "Retries").
pub(crate) const RETRY_HORIZON: Duration = Duration::from_secs(43 * 3600 + 36 * 60);

const DAY: Duration = Duration::from_secs(86_400);
const LONGEST_RESEND_AGE: Duration = Duration::from_secs(44 * 3600);
const LONGEST_DUPLICATE_WINDOW: Duration = Duration::from_secs(30 * 86_400);

/// How a keyed route tells duplicates, with what other checks need.
pub(crate) struct ReadIdempotency {
    pub(crate) namespace: At<String>,
    pub(crate) on_unknown: At<OnUnknown>,
    pub(crate) resend_age: At<Duration>,
    pub(crate) definition: Definition,
    pub(crate) meaning: Idempotency,
}

/// What a namespace's keys are made of.
pub(crate) struct Definition {
    texts: (String, String),
    pointers: Option<(Vec<Pointer>, Vec<Pointer>)>,
}

impl Definition {
    /// Whether two routes may share a namespace.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let pointers_agree = match (&self.pointers, &other.pointers) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => true,
        };
        self.texts == other.texts && pointers_agree
    }
}

/// What the table means on a route of this payload. The outer `None`: something is wrong, and was
/// reported. The inner: the route tells no duplicates.
pub(crate) fn idempotency(
    field: Field<schema::Idempotency>,
    payload: PayloadKind,
    windows: &[Window],
    problems: &mut Problems,
) -> Option<Option<ReadIdempotency>> {
    let place = field.place.clone();
    let unkeyed = field.is_absent() && payload == PayloadKind::Any;
    if unkeyed {
        return Some(None);
    }
    let read = if field.is_absent() {
        own(payload, &place)
    } else {
        written(field.written()?, payload, windows, problems)
    };
    read.map(Some)
}

/// The payload's own rules.
fn own(payload: PayloadKind, place: &Place) -> Option<ReadIdempotency> {
    let spec = KeySpec::for_payload(payload)?;
    let definition = definition(&spec, own_pointers(payload));
    let namespace = payload.as_str().to_owned();
    Some(ReadIdempotency {
        namespace: At {
            place: place.clone(),
            value: namespace.clone(),
        },
        on_unknown: At {
            place: place.clone(),
            value: usual_on_unknown(payload),
        },
        resend_age: At {
            place: place.clone(),
            value: Duration::ZERO,
        },
        definition,
        meaning: Idempotency {
            namespace,
            spec,
            on_unknown: usual_on_unknown(payload),
            keep: 400 * DAY,
            resend_age: Duration::ZERO,
            stale_events: StaleEvents::Mark,
            possible_duplicate: PossibleDuplicate::Mark,
            duplicate_window: DAY,
            probe: None,
        },
    })
}

fn written(
    table: At<schema::Idempotency>,
    payload: PayloadKind,
    windows: &[Window],
    problems: &mut Problems,
) -> Option<ReadIdempotency> {
    let schema::Idempotency {
        namespace,
        key,
        fingerprint,
        on_unknown,
        keep,
        resend_age,
        stale_events,
        possible_duplicate,
        duplicate_window,
        probe,
    } = table.value;
    let namespace = own_namespace(namespace, payload, problems);
    let places = [key.place.clone(), fingerprint.place.clone()];
    let spec = spec(key, fingerprint, payload, problems);
    if let (PayloadKind::Refund, Some((spec, _))) = (payload, &spec) {
        tells_refunds_apart(spec, &places, problems);
    }
    let on_unknown = on_unknown.or(usual_on_unknown(payload));
    if payload == PayloadKind::Refund && on_unknown.value == OnUnknown::Resend {
        problems
            .warning(
                &on_unknown.place,
                "refund_resend",
                "A REFUND WHOSE OUTCOME NOBODY KNOWS WILL BE SENT AGAIN: the customer may get the money twice",
            )
            .help("leave on_unknown out (\"hold\"), unless the backend itself never applies a request_id twice");
    }
    let resend_age = duration(
        resend_age,
        Duration::ZERO,
        Duration::ZERO..=LONGEST_RESEND_AGE,
        problems,
    );
    let keep = duration(keep, 400 * DAY, Duration::ZERO..=3650 * DAY, problems);
    long_enough(&keep, resend_age.value, windows, problems);
    let subject = subject(
        stale_events,
        possible_duplicate,
        duplicate_window,
        payload,
        problems,
    );
    sees_duplicates(&keep, &subject, payload, problems);

    let probe = {
        let spec = spec.as_ref().map(|(spec, _)| spec);
        probe::probe(probe, payload, spec, on_unknown.value, problems)
    };
    let (spec, definition) = spec?;
    let namespace = namespace?;
    Some(ReadIdempotency {
        definition,
        meaning: Idempotency {
            namespace: namespace.value.clone(),
            spec,
            on_unknown: on_unknown.value,
            keep: keep.value,
            resend_age: resend_age.value,
            stale_events: subject.stale_events,
            possible_duplicate: subject.possible_duplicate,
            duplicate_window: subject.duplicate_window.value,
            probe: probe?,
        },
        namespace,
        on_unknown,
        resend_age,
    })
}

/// Of a payload that the gate knows, two routes have the same messages. Of `any` nobody knows.
fn own_namespace(
    field: Field<String>,
    payload: PayloadKind,
    problems: &mut Problems,
) -> Option<At<String>> {
    if field.is_absent() && payload == PayloadKind::Any {
        problems
            .error(
                &field.place,
                "missing",
                "is required with payload \"any\": routes of one namespace answer for each other's calls",
            )
            .help("name what the route does, such as namespace = \"topup\"");
        return None;
    }
    label(field.or(payload.as_str().to_owned()), problems)
}

/// Tiki promises that `request_id` tells refunds apart, and of no other field.
fn tells_refunds_apart(spec: &KeySpec, [key, fingerprint]: &[Place; 2], problems: &mut Problems) {
    let Some(own) = KeySpec::for_payload(PayloadKind::Refund) else {
        return;
    };
    if spec.key_text() != own.key_text() {
        problems
            .warning(
                key,
                "refund_key",
                "is not the key of Tiki's refunds: two refunds may be taken for one, or one sent twice",
            )
            .help("leave it out: Tiki tells refunds apart by request_id alone");
    }
    if spec.fingerprint_text() != own.fingerprint_text() {
        problems
            .warning(
                fingerprint,
                "refund_key",
                "is not the fingerprint of Tiki's refunds: a request_id that comes again with another amount may go unnoticed",
            )
            .help("leave it out: the transaction's two ids and the amount are compared");
    }
}

/// A record that ends while Tiki may still send its message again would let it through twice.
fn long_enough(
    keep: &At<Duration>,
    resend_age: Duration,
    windows: &[Window],
    problems: &mut Problems,
) {
    let taken = windows
        .iter()
        .map(|window| window.max_age)
        .chain([resend_age])
        .max()
        .unwrap_or_default();
    let least = taken + RETRY_HORIZON;
    if keep.value < least {
        problems
            .error(
                &keep.place,
                "short_keep",
                "records would end while Tiki still sends the same message again",
            )
            .help(format!(
                "keep them for at least {} (the time window, or resend_age, and 43h36m of re-sends)",
                format_duration(least)
            ));
    }
}

/// What a message means to others about the same order or payment.
struct SubjectRules {
    stale_events: StaleEvents,
    possible_duplicate: PossibleDuplicate,
    duplicate_window: At<Duration>,
}

fn subject(
    stale_events: Field<StaleEvents>,
    possible_duplicate: Field<PossibleDuplicate>,
    duplicate_window: Field<Duration>,
    payload: PayloadKind,
    problems: &mut Problems,
) -> SubjectRules {
    for (place, absent, wanted) in [
        (
            &stale_events.place,
            stale_events.is_absent(),
            PayloadKind::OrderIpn,
        ),
        (
            &possible_duplicate.place,
            possible_duplicate.is_absent(),
            PayloadKind::Refund,
        ),
        (
            &duplicate_window.place,
            duplicate_window.is_absent(),
            PayloadKind::Refund,
        ),
    ] {
        if !absent && payload != wanted {
            problems
                .error(
                    place,
                    "other_payload",
                    format!(
                        "only means something with payload \"{}\", and this route's is \"{}\"",
                        wanted.as_str(),
                        payload.as_str()
                    ),
                )
                .help("take the key out here");
        }
    }
    SubjectRules {
        stale_events: stale_events.or(StaleEvents::Mark).value,
        possible_duplicate: possible_duplicate.or(PossibleDuplicate::Mark).value,
        duplicate_window: duration(
            duplicate_window,
            DAY,
            Duration::from_secs(1)..=LONGEST_DUPLICATE_WINDOW,
            problems,
        ),
    }
}

/// A record that ends within the window is no longer seen as the first of two.
fn sees_duplicates(
    keep: &At<Duration>,
    subject: &SubjectRules,
    payload: PayloadKind,
    problems: &mut Problems,
) {
    let window = &subject.duplicate_window;
    if payload == PayloadKind::Refund && window.value > keep.value {
        problems
            .error(
                &window.place,
                "short_keep",
                format!(
                    "is longer than records are kept ({}), so that a first refund would be forgotten within it",
                    format_duration(keep.value)
                ),
            )
            .help("make `keep` longer, or this shorter");
    }
}

fn spec(
    key: Field<Vec<At<String>>>,
    fingerprint: Field<Vec<At<String>>>,
    payload: PayloadKind,
    problems: &mut Problems,
) -> Option<(KeySpec, Definition)> {
    if key.is_absent() && fingerprint.is_absent() && payload != PayloadKind::Any {
        let spec = KeySpec::for_payload(payload)?;
        let definition = definition(&spec, own_pointers(payload));
        return Some((spec, definition));
    }
    let (own_key, own_fingerprint) = match own_pointers(payload) {
        Some((key, fingerprint)) => (Some(key), Some(fingerprint)),
        None => (None, None),
    };
    let key = pointers(key, own_key, 8, problems);
    let fingerprint = pointers(fingerprint, own_fingerprint, 16, problems);
    let (key, fingerprint) = (key?, fingerprint?);
    let spec = KeySpec::new(key.clone(), fingerprint.clone());
    let definition = definition(&spec, Some((key, fingerprint)));
    Some((spec, definition))
}

fn pointers(
    field: Field<Vec<At<String>>>,
    own: Option<Vec<Pointer>>,
    most: usize,
    problems: &mut Problems,
) -> Option<Vec<Pointer>> {
    if field.is_absent() {
        if own.is_none() {
            problems
                .error(
                    &field.place,
                    "missing",
                    "is required here: key and fingerprint are given together",
                )
                .help("list JSON pointers, such as [\"/request_id\"]");
        }
        return own;
    }
    let written = field.written()?;
    if written.value.is_empty() || written.value.len() > most {
        let message = format!("must list 1 to {most} JSON pointers");
        problems.error(&written.place, "out_of_bounds", message);
        return None;
    }
    let asked = written.value.len();
    let mut pointers: Vec<Pointer> = Vec::new();
    for one in written.value {
        let Some(pointer) = pointer(&one, problems) else {
            continue;
        };
        if pointers.contains(&pointer) {
            problems.error(&one.place, "duplicate", "this pointer is listed already");
        } else {
            pointers.push(pointer);
        }
    }
    (pointers.len() == asked).then_some(pointers)
}

/// Reads a JSON pointer.
pub(crate) fn pointer(written: &At<String>, problems: &mut Problems) -> Option<Pointer> {
    match Pointer::parse(&written.value) {
        Ok(pointer) => Some(pointer),
        Err(message) => {
            problems.error(&written.place, "bad_pointer", message);
            None
        }
    }
}

fn definition(spec: &KeySpec, pointers: Option<(Vec<Pointer>, Vec<Pointer>)>) -> Definition {
    Definition {
        texts: (spec.key_text(), spec.fingerprint_text()),
        pointers,
    }
}

/// A payload's own key and fingerprint, where pointers can say them. A transaction IPN's can't:
/// its first field has two names.
fn own_pointers(payload: PayloadKind) -> Option<(Vec<Pointer>, Vec<Pointer>)> {
    let (key, fingerprint): (&[&str], &[&str]) = match payload {
        PayloadKind::Refund => (
            &["/request_id"],
            &[
                "/tiki_transaction_id",
                "/transaction_id",
                "/transaction_amount",
            ],
        ),
        PayloadKind::OrderIpn => (
            &["/message_id"],
            &["/order/id", "/order/status", "/order/grand_total"],
        ),
        PayloadKind::TransactionIpn | PayloadKind::Any => return None,
    };
    Some((parse_all(key)?, parse_all(fingerprint)?))
}

fn parse_all(list: &[&str]) -> Option<Vec<Pointer>> {
    list.iter().map(|text| Pointer::parse(text).ok()).collect()
}

fn usual_on_unknown(payload: PayloadKind) -> OnUnknown {
    match payload {
        PayloadKind::TransactionIpn | PayloadKind::OrderIpn => OnUnknown::Resend,
        // Of a payload that the gate doesn't know, the careful half is assumed.
        PayloadKind::Refund | PayloadKind::Any => OnUnknown::Hold,
    }
}
