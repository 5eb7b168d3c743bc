//! `[signature]` and time windows.

use std::time::Duration;

use http::StatusCode;

use super::count;
use crate::config::problem::Problems;
use crate::config::schema::{self, PerFamily};
use crate::config::settings::Signature;
use crate::config::tree::Place;
use crate::config::value::{At, Field};
use crate::tiki::{Family, Window};

/// Tiki VIP's stated maximum age (docs/protocol.md, "Signature").
const MAX_AGE: Duration = Duration::from_secs(300);
const MAX_AHEAD: Duration = Duration::from_secs(60);
/// A longer window is almost always a mistake: replays are refused only as long as they are remembered.
const SUSPICIOUS_AGE: Duration = Duration::from_secs(15 * 60);
const LONGEST_AGE: Duration = Duration::from_secs(44 * 3600);
const LONGEST_AHEAD: Duration = Duration::from_secs(3600);

/// Reads `[signature]`: what holds for all routes, and the windows that routes start from.
pub(crate) fn signature(
    written: schema::Signature,
    problems: &mut Problems,
) -> (Signature, [Window; 2]) {
    let schema::Signature {
        families,
        max_age,
        max_ahead,
        refuse_with,
        max_remembered,
    } = written;
    let usual = Window {
        max_age: MAX_AGE,
        max_ahead: MAX_AHEAD,
    };
    let windows = windows(max_age, max_ahead, [usual; 2], problems);
    let signature = Signature {
        families: accepted(families, problems),
        refuse_with: refusal_status(refuse_with, problems),
        max_remembered: count(max_remembered, 1_000_000, 1..=100_000_000, problems),
    };
    (signature, windows)
}

/// Lays the windows that were written over those of `outer`, in the order of [`Family::ALL`].
pub(crate) fn windows(
    max_age: Field<PerFamily>,
    max_ahead: Field<PerFamily>,
    outer: [Window; 2],
    problems: &mut Problems,
) -> [Window; 2] {
    let ages = per_family(max_age, outer.map(|window| window.max_age));
    let aheads = per_family(max_ahead, outer.map(|window| window.max_ahead));
    let ages = ages.map(|age| checked_age(age, problems));
    let aheads = aheads.map(|ahead| checked_ahead(ahead, problems));
    [0, 1].map(|family| Window {
        max_age: ages[family],
        max_ahead: aheads[family],
    })
}

/// A value for a family, with its place if it was written here. Values from outside were checked there.
type Written = (Duration, Option<Place>);

fn per_family(field: Field<PerFamily>, outer: [Duration; 2]) -> [Written; 2] {
    match field.written() {
        None => outer.map(|value| (value, None)),
        Some(At { place, value }) => match value {
            // One value, told once if it is wrong.
            PerFamily::One(value) => [(value, Some(place)), (value, None)],
            PerFamily::Each { tiniapp, tikivip } => {
                let [outer_tiniapp, outer_tikivip] = outer;
                [one(tiniapp, outer_tiniapp), one(tikivip, outer_tikivip)]
            }
        },
    }
}

fn one(field: Field<Duration>, outer: Duration) -> Written {
    match field.written() {
        Some(written) => (written.value, Some(written.place)),
        None => (outer, None),
    }
}

fn checked_age((age, place): Written, problems: &mut Problems) -> Duration {
    let Some(place) = place else {
        return age;
    };
    if age.is_zero() || age > LONGEST_AGE {
        let message = "must be more than zero and at most 44h";
        problems.error(&place, "out_of_bounds", message);
    } else if age > SUSPICIOUS_AGE {
        problems
            .warning(&place, "long_window", "a captured call stays good for over 15 minutes")
            .help("Tiki states 1m (Tini App) and 5m (Tiki VIP); for calls that Tiki sends again unchanged, set resend_age on the route");
    }
    age
}

fn checked_ahead((ahead, place): Written, problems: &mut Problems) -> Duration {
    if let Some(place) = place
        && ahead > LONGEST_AHEAD
    {
        problems.error(&place, "out_of_bounds", "must be at most 1h");
    }
    ahead
}

fn accepted(field: Field<Vec<At<Family>>>, problems: &mut Problems) -> Vec<Family> {
    let Some(At { place, value }) = field.written() else {
        return Family::ALL.to_vec();
    };
    let mut families = Vec::new();
    for family in &value {
        if families.contains(&family.value) {
            problems.error(&family.place, "duplicate", "this family is listed already");
        } else {
            families.push(family.value);
        }
    }
    if families.is_empty() {
        problems.error(&place, "empty", "at least one family must be accepted");
        return Family::ALL.to_vec();
    }
    families
}

fn refusal_status(field: Field<u64>, problems: &mut Problems) -> StatusCode {
    let written = field.or(401);
    match written.value {
        401 => StatusCode::UNAUTHORIZED,
        503 => StatusCode::SERVICE_UNAVAILABLE,
        _ => {
            problems
                .error(&written.place, "out_of_bounds", "must be 401 or 503")
                .help("401 is not sent again by Tiki; 503 is, so use it while secrets are new or change");
            StatusCode::UNAUTHORIZED
        }
    }
}
