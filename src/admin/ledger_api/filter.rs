//! The query of a list.

use std::borrow::Cow;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::admin::answer::Fault;
use crate::ledger::{Filter, RecordId, State};

/// Records in one answer: unless asked, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 500;

/// Bytes at most of what is searched for.
const MAX_QUERY: usize = 256;

/// `state=&route=&key=&q=&reference=&from=&until=&after=&limit=`; an unknown or repeated name is
/// an error, since a filter that is silently ignored shows more than was asked for. An empty value
/// is no filter.
pub(super) fn read(query: &str) -> Result<Filter, Fault> {
    let mut filter = Filter {
        limit: DEFAULT_LIMIT,
        ..Filter::default()
    };
    let mut seen: Vec<Cow<'_, str>> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if seen.contains(&name) {
            return Err(Fault::Malformed(format!("`{name}` is given twice")));
        }
        if value.len() > MAX_QUERY {
            return Err(Fault::Malformed(format!(
                "`{name}` is longer than {MAX_QUERY} bytes"
            )));
        }
        let given = (!value.is_empty()).then_some(&*value);
        match &*name {
            "state" => filter.state = given.map(state).transpose()?,
            "route" => filter.route = given.map(str::to_owned),
            "key" => filter.key = given.map(str::to_owned),
            "q" => filter.query = given.map(str::to_owned),
            "reference" => filter.reference = given.map(str::to_owned),
            "from" => filter.created_from = given.map(|text| time(&name, text)).transpose()?,
            "until" => filter.created_until = given.map(|text| time(&name, text)).transpose()?,
            "after" => filter.after = given.map(cursor).transpose()?,
            "limit" => filter.limit = given.map_or(Ok(DEFAULT_LIMIT), limit)?,
            _ => return Err(Fault::Malformed(format!("there is no filter `{name}`"))),
        }
        seen.push(name);
    }
    if let (Some(from), Some(until)) = (filter.created_from, filter.created_until)
        && from >= until
    {
        let what = "`from` is not before `until`: there can be nothing between them";
        return Err(Fault::Malformed(what.to_owned()));
    }
    Ok(filter)
}

/// The state that a word names.
pub(super) fn state(word: &str) -> Result<State, Fault> {
    word.parse().map_err(|()| {
        let all = State::ALL.map(State::as_str).join(", ");
        Fault::Malformed(format!("there is no state `{word}`; there are {all}"))
    })
}

/// RFC 3339, or a date, which means its first moment in UTC.
fn time(name: &str, text: &str) -> Result<SystemTime, Fault> {
    let date = || {
        // A time without an offset would parse as its date, and lose its hours in silence.
        let date = Some(text).filter(|text| text.len() <= "2026-11-23".len())?;
        let date: Date = date.parse().ok()?;
        TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()
    };
    let at = text.parse::<Timestamp>().ok().or_else(date);
    at.and_then(|at| SystemTime::try_from(at).ok())
        .ok_or_else(|| {
            Fault::Malformed(format!(
                "`{name}` is a date in UTC such as 2026-11-23, or a time such as \
             2026-11-23T08:00:00%2B07:00, in a URL with its `+` written so"
            ))
        })
}

fn cursor(text: &str) -> Result<RecordId, Fault> {
    text.parse()
        .map_err(|()| Fault::Malformed(format!("`{text}` is no record id such as rec-12")))
}

fn limit(text: &str) -> Result<usize, Fault> {
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(Fault::Malformed(format!(
            "`limit` is a number from 1 to {MAX_LIMIT}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(fault: Fault) -> String {
        match fault {
            Fault::Malformed(message) => message,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_filter_is_read_whole_or_not_at_all() {
        let filter = read(
            "state=unknown&route=refund&key=k&q=a%26b+c&reference=t%2B1&after=rec-7&limit=500",
        );
        let filter = filter.unwrap();
        assert_eq!(filter.state, Some(State::Unknown));
        assert_eq!(filter.route.as_deref(), Some("refund"));
        assert_eq!(filter.key.as_deref(), Some("k"));
        assert_eq!(filter.query.as_deref(), Some("a&b c"));
        assert_eq!(filter.reference.as_deref(), Some("t+1"));
        assert_eq!(filter.after, Some(RecordId(7)));
        assert_eq!(filter.limit, 500);

        let nothing = read("state=&q=&limit=&from=&until=&reference=").unwrap();
        assert!(nothing.state.is_none() && nothing.query.is_none());
        assert!(nothing.created_from.is_none() && nothing.created_until.is_none());
        assert!(nothing.reference.is_none());
        assert_eq!(nothing.limit, DEFAULT_LIMIT);

        for (query, complaint) in [
            ("state=lost", "there is no state `lost`; there are claimed"),
            ("stat=unknown", "there is no filter `stat`"),
            ("q=a&q=b", "`q` is given twice"),
            ("after=7", "`7` is no record id"),
            ("limit=0", "`limit` is a number from 1 to 500"),
            ("limit=501", "`limit` is a number from 1 to 500"),
            ("from=yesterday", "`from` is a date in UTC"),
            ("from=2026-11-23T08:00:00", "`from` is a date in UTC"),
            ("until=2026-11-31", "`until` is a date in UTC"),
            (
                "until=2026-11-23T08:00:00+07:00",
                "`until` is a date in UTC",
            ),
            (
                "from=2026-11-23&until=2026-11-23",
                "`from` is not before `until`",
            ),
        ] {
            let fault = message(read(query).unwrap_err());
            assert!(fault.starts_with(complaint), "{query}: {fault}");
        }
        let long = format!("q={}", "x".repeat(MAX_QUERY + 1));
        assert!(read(&long).is_err());
    }

    #[test]
    fn times_are_dates_in_utc_or_have_an_offset() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let filter = read("from=2026-11-23&until=2026-11-23T08:00:00%2B07:00").unwrap();
        assert_eq!(filter.created_from, at(1_795_392_000));
        assert_eq!(filter.created_until, at(1_795_395_600));
    }
}
