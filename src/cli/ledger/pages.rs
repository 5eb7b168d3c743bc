//! Lists, page by page, and the record that a key names.

use jiff::Timestamp;
use serde_json::Value;

use super::record::{not_understood, understand_all};
use super::text::Writer;
use crate::cli::admin_client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::cli::terminal;

/// Records that the admin API gives at once.
const PAGE: usize = 500;

/// Records with one key that are looked at: more than clients and namespaces there can be.
const ALIKE: usize = 1_000;

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) state: Option<String>,
    pub(super) route: Option<String>,
    /// Exactly the key.
    pub(super) key: Option<String>,
    /// In the key.
    pub(super) query: Option<String>,
    /// Exactly a field.
    pub(super) reference: Option<String>,
    /// First claimed at or after.
    pub(super) from: Option<Timestamp>,
    /// First claimed before.
    pub(super) until: Option<Timestamp>,
    /// Only after this id.
    pub(super) after: Option<String>,
}

impl Wanted {
    fn path(&self, limit: usize) -> String {
        let Self {
            state,
            route,
            key,
            query,
            reference,
            from,
            until,
            after,
        } = self;
        let time = |at: &Option<Timestamp>| at.map(|at| at.to_string());
        let (from, until) = (time(from), time(until));
        let filters = [
            ("state", state),
            ("route", route),
            ("key", key),
            ("q", query),
            ("reference", reference),
            ("from", &from),
            ("until", &until),
            ("after", after),
        ];
        let mut written = form_urlencoded::Serializer::new(String::new());
        for (name, value) in filters {
            if let Some(value) = value {
                written.append_pair(name, value);
            }
        }
        written.append_pair("limit", &limit.to_string());
        format!("/api/ledger?{}", written.finish())
    }
}

/// The pages of a list, one after the other.
pub(super) struct Pages<'a> {
    client: &'a AdminClient,
    wanted: Wanted,
    over: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(client: &'a AdminClient, wanted: Wanted) -> Self {
        Self {
            client,
            wanted,
            over: false,
        }
    }

    /// At most so many further records, possibly none although more follow; `None` after the last.
    pub(super) fn next(&mut self, at_most: usize) -> Result<Option<Vec<Value>>, Failure> {
        if self.over {
            return Ok(None);
        }
        let room = at_most.clamp(1, PAGE);
        let mut page = self.client.get(&self.wanted.path(room))?;
        let Value::Array(found) = page["records"].take() else {
            return Err(not_understood());
        };
        let next = page["next"].as_str().map(str::to_owned);
        // A cursor that stands still would make this go round for ever.
        let goes_on =
            next.is_none() || number(next.as_deref()) > number(self.wanted.after.as_deref());
        if found.len() > room || !goes_on {
            return Err(not_understood());
        }
        self.over = next.is_none();
        self.wanted.after = next;
        Ok(Some(found))
    }

    /// The id that the next page goes on after; none after the last.
    pub(super) fn after(&self) -> Option<&str> {
        self.wanted.after.as_deref()
    }
}

fn number(id: Option<&str>) -> Option<u64> {
    id?.strip_prefix("rec-")?.parse().ok()
}

/// Up to `limit` records, and the id to go on after if there may be more.
pub(super) fn fetch(
    client: &AdminClient,
    wanted: Wanted,
    limit: usize,
) -> Result<(Vec<Value>, Option<String>), Failure> {
    let mut stderr = std::io::stderr();
    // Gone before anything is written to standard output.
    let mut progress = Progress::on_stderr(&mut stderr, false);
    let mut pages = Pages::new(client, wanted);
    let mut records = Vec::new();
    while records.len() < limit {
        match pages.next(limit - records.len())? {
            Some(found) => records.extend(found),
            None => break,
        }
        progress.tell(|| {
            let after = pages.after().unwrap_or_default();
            format!(
                "looked through the ledger up to {}",
                terminal::escape(after)
            )
        });
    }
    Ok((records, pages.after().map(str::to_owned)))
}

/// The record that a key names: by its id, else the only one with this idempotency key. Several are
/// listed before the failure.
pub(super) fn find(
    client: &AdminClient,
    key: &str,
    out: &mut Writer<'_>,
) -> Result<Value, Failure> {
    if is_record_id(key) {
        return show(client, key);
    }
    let wanted = Wanted {
        key: Some(key.to_owned()),
        ..Wanted::default()
    };
    let (records, _) = fetch(client, wanted, ALIKE)?;
    match understand_all(records)?.as_slice() {
        [] => Err(Failure::Other(format!(
            "no record has the key `{0}`; tikigate ledger list --reference {0} looks for it in the \
             messages' other fields",
            terminal::escape(key)
        ))),
        [only] => show(client, &only.id),
        several => {
            out.table(several)?;
            Err(Failure::Other(format!(
                "{} records have this key; name one by its id",
                several.len()
            )))
        }
    }
}

/// The record with this id.
pub(super) fn show(client: &AdminClient, id: &str) -> Result<Value, Failure> {
    Ok(client.get(&format!("/api/ledger/{}", path_segment(id)))?)
}

fn is_record_id(key: &str) -> bool {
    key.strip_prefix("rec-")
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Ids come back from the network: whatever they are, they stay one segment.
pub(in crate::cli) fn path_segment(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}
