//! Entries and events out of rows.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::columns::{policy_of, restored, set_flags};
use super::writing::{CHANGING, FIXED};
use crate::ledger::texts::headers_of;
use crate::ledger::transition::Entry;
use crate::ledger::{
    Event, Fields, Fingerprint, Hold, KeptAnswer, KeptRequest, Key, Marks, Owner, Record, RecordId,
    State, Subject, SubjectRule,
};
use crate::store::postgres::Fault;

/// `select` of everything that [`entry`] reads. What the lighter ones leave out, it reads as empty.
pub(super) static ALL_COLUMNS: LazyLock<String> = LazyLock::new(|| selected(&[]));
/// Without the call.
pub(super) static SHOWN_COLUMNS: LazyLock<String> = LazyLock::new(|| selected(&["request_body"]));
/// Without any body.
pub(super) static LIGHT_COLUMNS: LazyLock<String> =
    LazyLock::new(|| selected(&["request_body", "answer_body"]));

fn selected(left_out: &[&str]) -> String {
    let columns = CHANGING.iter().chain(&FIXED[1..]);
    let columns = columns.map(|name| match left_out.contains(name) {
        true => "null::bytea".to_owned(),
        false => format!("r.{name}"),
    });
    let columns: Vec<_> = columns.collect();
    format!("r.id, {}, r.awaited", columns.join(", "))
}

/// Reads a row's columns one after the other.
pub(super) struct Columns<'a> {
    row: &'a Row,
    next: usize,
}

impl<'a> Columns<'a> {
    /// From this column on.
    pub(super) fn from(row: &'a Row, next: usize) -> Self {
        Self { row, next }
    }

    pub(super) fn take<T: FromSql<'a>>(&mut self) -> Result<T, Fault> {
        let value = self.row.try_get(self.next)?;
        self.next += 1;
        Ok(value)
    }

    fn number<T: TryFrom<i64>>(&mut self) -> Result<T, Fault> {
        T::try_from(self.take::<i64>()?).map_err(|_| Fault::Corrupt("a number"))
    }

    fn state(&mut self) -> Result<State, Fault> {
        let word: &str = self.take()?;
        word.parse().map_err(|()| Fault::Corrupt("a state"))
    }

    fn duration(&mut self) -> Result<Option<Duration>, Fault> {
        let seconds: Option<i64> = self.take()?;
        let whole = seconds.map(u64::try_from).transpose();
        let whole = whole.map_err(|_| Fault::Corrupt("a time span"))?;
        Ok(whole.map(Duration::from_secs))
    }

    fn body(&mut self) -> Result<Bytes, Fault> {
        let body: Option<&[u8]> = self.take()?;
        Ok(Bytes::copy_from_slice(body.unwrap_or_default()))
    }
}

/// An entry, and whether somebody waits for its attempt to end. Reads [`ALL_COLUMNS`].
pub(super) fn entry(columns: &mut Columns<'_>) -> Result<(Entry, bool), Fault> {
    let id = RecordId(columns.number()?);
    let state = columns.state()?;
    let attempt = columns.number()?;
    let version = columns.number()?;
    let owner = Owner(columns.take::<i64>()?.cast_unsigned());
    let policy = policy_of(columns.take()?)?;
    let route: &str = columns.take()?;
    let updated_at = columns.take()?;
    let may_run_until = columns.take()?;
    let expires_at = columns.take()?;
    let keep = columns.duration()?.unwrap_or_default();
    let alarmed = columns.take()?;
    let declared = columns.take()?;
    let hold = hold_of(columns.take()?)?;
    let marks = Marks {
        stale_event: columns.take()?,
        possible_duplicate: columns.take()?,
    };
    let answer = answer(columns)?;
    let request = request(columns)?;
    let generation = columns.number()?;
    let absent_since = columns.take()?;
    let flags: &str = columns.take()?;
    let (key, fingerprint, created_at) = message(columns)?;
    let fields = fields(columns)?;
    let subject = subject(columns)?;
    let awaited = columns.take()?;
    let mut entry = Entry {
        record: Record {
            id,
            key,
            fingerprint,
            state,
            attempt,
            version,
            owner,
            policy,
            route: restored(route).into(),
            created_at,
            updated_at,
            may_run_until,
            expires_at,
            alarmed,
            answer,
            fields,
            marks,
            hold,
            declared,
        },
        keep,
        generation,
        request,
        subject,
        absent_since,
        given_up: false,
        given_up_before: false,
        word_before: false,
        reopened: false,
        gap: false,
        suspected: false,
        cleared: false,
        dropped: false,
        sightings_spent: false,
    };
    set_flags(&mut entry, flags)?;
    Ok((entry, awaited))
}

fn hold_of(word: Option<&str>) -> Result<Option<Hold>, Fault> {
    let Some(word) = word else { return Ok(None) };
    let known = Hold::ALL.into_iter().find(|hold| hold.as_str() == word);
    known.map(Some).ok_or(Fault::Corrupt("a hold"))
}

fn answer(columns: &mut Columns<'_>) -> Result<Option<KeptAnswer>, Fault> {
    let status: Option<i32> = columns.take()?;
    let text: Option<&str> = columns.take()?;
    let body = columns.body()?;
    let Some(status) = status else {
        return Ok(None);
    };
    let status = u16::try_from(status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    Ok(Some(KeptAnswer {
        status: status.ok_or(Fault::Corrupt("a status"))?,
        headers: headers(text)?,
        body,
    }))
}

fn request(columns: &mut Columns<'_>) -> Result<Option<KeptRequest>, Fault> {
    let text: Option<&str> = columns.take()?;
    let body = columns.body()?;
    if text.is_none() {
        return Ok(None);
    }
    let headers = headers(text)?;
    Ok(Some(KeptRequest { headers, body }))
}

fn headers(text: Option<&str>) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let headers = text.map_or(Some(Vec::new()), headers_of);
    headers.ok_or(Fault::Corrupt("headers"))
}

fn message(columns: &mut Columns<'_>) -> Result<(Key, Fingerprint, SystemTime), Fault> {
    let namespace: &str = columns.take()?;
    let client: &str = columns.take()?;
    let message: &str = columns.take()?;
    let key = Key {
        namespace: restored(namespace).into(),
        client: restored(client).into(),
        message: restored(message).into(),
    };
    let fingerprint: &[u8] = columns.take()?;
    let fingerprint = fingerprint.try_into();
    let fingerprint = fingerprint.map_err(|_| Fault::Corrupt("a fingerprint"))?;
    Ok((key, Fingerprint(fingerprint), columns.take()?))
}

fn fields(columns: &mut Columns<'_>) -> Result<Fields, Fault> {
    let names: Vec<&str> = columns.take()?;
    let texts: Vec<&str> = columns.take()?;
    let text = |text: &str| restored(text).into_owned();
    let names = names.iter().map(|name| Cow::Owned(text(name)));
    let fields = names.zip(texts.iter().map(|value| text(value)));
    Ok(Fields(fields.collect()))
}

fn subject(columns: &mut Columns<'_>) -> Result<Option<Subject>, Fault> {
    let id: Option<&str> = columns.take()?;
    let at: Option<SystemTime> = columns.take()?;
    let drop_stale: Option<bool> = columns.take()?;
    let amount: Option<&str> = columns.take()?;
    let window = columns.duration()?;
    let hold: Option<bool> = columns.take()?;
    let Some(id) = id else { return Ok(None) };
    let rule = match (at, amount) {
        (Some(at), None) => SubjectRule::Event {
            at,
            drop_stale: drop_stale.unwrap_or_default(),
        },
        (None, Some(amount)) => SubjectRule::Payment {
            amount: restored(amount).into(),
            window: window.unwrap_or_default(),
            hold: hold.unwrap_or_default(),
        },
        _ => return Err(Fault::Corrupt("a subject")),
    };
    let id = restored(id).into();
    Ok(Some(Subject { id, rule }))
}

/// Events in the order of their numbers, and between them how many are not kept. Reads `number, at,
/// attempt, state, cause, by_name, reason`.
pub(super) fn events(rows: &[Row]) -> Result<Vec<Event>, Fault> {
    let mut told: Vec<Event> = Vec::with_capacity(rows.len());
    let mut last = 0;
    for row in rows {
        let mut columns = Columns::from(row, 0);
        let number: i64 = columns.take()?;
        let between = number - last - 1;
        if let Some(before) = told.last().cloned().filter(|_| between > 0) {
            told.push(Event {
                cause: format!("{between} events not kept").into(),
                by: None,
                ..before
            });
        }
        told.push(event(&mut columns)?);
        last = number;
    }
    Ok(told)
}

/// An event. Reads `at, attempt, state, cause, by_name, reason`.
fn event(columns: &mut Columns<'_>) -> Result<Event, Fault> {
    let at = columns.take()?;
    let attempt = columns.number()?;
    let state = columns.state()?;
    let text = |text: &str| restored(text).into_owned();
    let cause = text(columns.take()?);
    let by_name: Option<&str> = columns.take()?;
    let reason: Option<&str> = columns.take()?;
    Ok(Event {
        at,
        attempt,
        state,
        cause: Cow::Owned(cause),
        by: by_name.map(text).zip(reason.map(text)),
    })
}
