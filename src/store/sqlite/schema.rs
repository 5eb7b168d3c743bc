//! The tables, and how a file of an older version gets them.
//!
//! For people with the plain `sqlite3` command there are views that show times as UTC text and bodies
//! as text: `ledger`, `ledger_events`, `ledger_journal` and `notices`, which the outbox keeps.

use rusqlite::Connection;

use super::meta::Meta;

/// Says "a tikigate ledger" in the file's header.
pub const APPLICATION_ID: i32 = 0x746b_6c67;

/// The newest revision, and so the number of migrations. It stands in `meta`.
pub const REVISION: i32 = MIGRATIONS.len() as i32;

/// The least version that a program must know to use a file of this [`REVISION`]; it stands in the
/// file's header. Higher than that of the revision before only where a migration takes something away
/// or gives it another meaning: so an older program can go on after a newer one (it is put back, or
/// the two run side by side), as long as what was added is nothing to it.
pub const VERSION: i32 = 1;

/// The least revision whose files are read as they are; older ones must be brought up to date first.
pub const READABLE_FROM: i32 = 1;

/// Each brings a file of the revision before it to its own. Never changed once released.
const MIGRATIONS: &[&str] = &[FIRST, SECOND];

/// The tables of a revision in a database of their own: for an outbox that lasts as long as its process,
/// and to compare with.
pub fn in_memory(revision: i32) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    let steps = usize::try_from(revision).unwrap_or_default();
    MIGRATIONS
        .iter()
        .take(steps)
        .try_for_each(|step| connection.execute_batch(step))?;
    Ok(connection)
}

/// How many migrations the file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The least that a program must know; 0 for a file that holds nothing yet.
    pub version: i32,
    /// Which migration was the last.
    pub revision: i32,
}

impl Schema {
    /// Of a file with this version in its header.
    pub(super) fn of(connection: &Connection, version: i32) -> rusqlite::Result<Self> {
        let revision = match version {
            0 => 0,
            _ if has_revision(connection)? => connection
                .query_row("SELECT max(revision) FROM meta", (), |row| {
                    row.get::<_, Option<i32>>(0)
                })?
                .unwrap_or(REVISION),
            _ => 1,
        };
        Ok(Self { version, revision })
    }
}

fn has_revision(connection: &Connection) -> rusqlite::Result<bool> {
    let column = "SELECT count(*) FROM pragma_table_info('meta') WHERE name = 'revision'";
    connection.query_row(column, (), |row| Ok(row.get::<_, i64>(0)? > 0))
}

/// From here on the file says which migrations it has.
const SECOND: &str = "ALTER TABLE meta ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;";

/// Times are microseconds since 1970 in UTC; hashes are the first 8 bytes of SHA-256.
///
/// What carries the weight at ten million records: of each, two hashes go to random places, of indexes
/// with little beside them, some 200 to a page. All other indexes grow at their end (by time) or are small (what
/// isn't done).
///
/// `answers` is what programs of before answered repeats from: each answer went to a random place there, 25 to a
/// page. What such a program has listed, or lists when it is put back, counts (`listed`, which leaves the record out
/// of the index by message) until the record changes or is forgotten. Nothing else goes there.
///
/// For a list of more than two words SQLite makes a table of its own with each row that it checks.
const FIRST: &str = "
CREATE TABLE meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    ledger TEXT NOT NULL,
    generation INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    next_record INTEGER NOT NULL,
    claimed INTEGER NOT NULL,
    released INTEGER NOT NULL,
    done INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    quarantine TEXT
) STRICT;

CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    message_hash INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    client TEXT NOT NULL,
    message TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('claimed', 'released') OR state IN ('done', 'unknown')),
    attempt INTEGER NOT NULL,
    version INTEGER NOT NULL,
    owner INTEGER NOT NULL,
    policy TEXT NOT NULL CHECK (policy IN ('hold', 'resend')),
    route TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    may_run_until INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    keep INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    marks TEXT,
    absent_since INTEGER,
    fields TEXT,
    subject TEXT,
    subject_rule TEXT,
    subject_week INTEGER,
    subject_hash INTEGER,
    answer_status INTEGER,
    answer_headers TEXT,
    answer_body BLOB,
    request_headers TEXT,
    request_body BLOB,
    events TEXT NOT NULL,
    listed INTEGER
) STRICT;

CREATE TABLE answers (
    message_hash INTEGER PRIMARY KEY,
    id INTEGER NOT NULL,
    key_check BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    policy TEXT NOT NULL,
    keep INTEGER NOT NULL,
    status INTEGER NOT NULL,
    headers TEXT,
    body BLOB
) STRICT;

CREATE TRIGGER answers_forgotten AFTER DELETE ON records WHEN old.listed IS NOT NULL BEGIN
    DELETE FROM answers WHERE message_hash = old.message_hash AND id = old.id;
END;

CREATE INDEX records_by_message ON records (message_hash) WHERE listed IS NULL;
CREATE INDEX records_open ON records (state, updated_at) WHERE state <> 'done';
CREATE INDEX records_by_expiry ON records (expires_at) WHERE state = 'done';
CREATE INDEX records_by_subject ON records (subject_week, subject_hash) WHERE subject_hash IS NOT NULL;

CREATE TABLE journal (
    at INTEGER NOT NULL,
    what TEXT NOT NULL,
    by TEXT,
    reason TEXT
) STRICT;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    client TEXT NOT NULL,
    base_url TEXT NOT NULL,
    tiki_transaction_id TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    status TEXT NOT NULL,
    amount TEXT NOT NULL,
    state TEXT NOT NULL,
    step TEXT NOT NULL,
    place INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    asks INTEGER NOT NULL,
    maybe_taken INTEGER NOT NULL,
    refusal TEXT,
    flight INTEGER NOT NULL,
    flying_until INTEGER,
    next_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    opened_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    outcome TEXT,
    tell_at INTEGER,
    tellings INTEGER NOT NULL,
    held INTEGER NOT NULL,
    size INTEGER NOT NULL,
    events TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX outbox_by_message ON outbox (tiki_transaction_id, transaction_id, client, status);
CREATE INDEX outbox_due ON outbox (next_at) WHERE state = 'pending' AND held = 0;
CREATE INDEX outbox_over ON outbox (updated_at) WHERE state <> 'pending';
CREATE INDEX outbox_unsent ON outbox (updated_at)
    WHERE (state = 'cancelled' OR state = 'superseded') AND maybe_taken = 0;
CREATE INDEX outbox_failed ON outbox (id) WHERE state = 'failed';
CREATE INDEX outbox_waiting ON outbox (opened_at) WHERE state = 'pending';
CREATE INDEX outbox_to_tell ON outbox (tell_at) WHERE tell_at IS NOT NULL;

CREATE TABLE outbox_accounts (
    client TEXT NOT NULL,
    base_url TEXT NOT NULL,
    PRIMARY KEY (client, base_url)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox_total (only INTEGER PRIMARY KEY CHECK (only = 1), bytes INTEGER NOT NULL) STRICT;
INSERT INTO outbox_total VALUES (1, 0);
CREATE TRIGGER outbox_grows AFTER INSERT ON outbox BEGIN
    UPDATE outbox_total SET bytes = bytes + new.size;
END;
CREATE TRIGGER outbox_changes AFTER UPDATE OF size ON outbox WHEN new.size <> old.size BEGIN
    UPDATE outbox_total SET bytes = bytes + new.size - old.size;
END;
CREATE TRIGGER outbox_shrinks AFTER DELETE ON outbox BEGIN
    UPDATE outbox_total SET bytes = bytes - old.size;
END;

CREATE VIEW ledger AS SELECT
    'rec-' || id AS id,
    state, route, namespace, client, message AS key, attempt, version, policy AS on_unknown,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1e6, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1e6, 'unixepoch') AS updated_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', may_run_until / 1e6, 'unixepoch') AS may_run_until,
    strftime('%Y-%m-%dT%H:%M:%fZ', expires_at / 1e6, 'unixepoch') AS expires_at,
    fields, subject, marks, printf('%016x', owner) AS owner, lower(hex(fingerprint)) AS fingerprint,
    answer_status, answer_headers, CAST(answer_body AS TEXT) AS answer_body,
    CAST(request_body AS TEXT) AS request_body
    FROM records;

CREATE VIEW ledger_events AS SELECT
    'rec-' || records.id AS id,
    strftime('%Y-%m-%dT%H:%M:%fZ', (event.value ->> 0) / 1e6, 'unixepoch') AS at,
    event.value ->> 1 AS attempt,
    event.value ->> 2 AS state,
    event.value ->> 3 AS cause,
    event.value ->> 4 AS by,
    event.value ->> 5 AS reason
    FROM records, json_each('[' || replace(records.events, char(10), ',') || ']') AS event;

CREATE VIEW ledger_journal AS SELECT
    strftime('%Y-%m-%dT%H:%M:%fZ', at / 1e6, 'unixepoch') AS at, what, by, reason
    FROM journal;

CREATE VIEW notices AS SELECT
    'out-' || id AS id,
    state, step, client, base_url, tiki_transaction_id, transaction_id, status, amount, tries, asks,
    maybe_taken, outcome,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1e6, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1e6, 'unixepoch') AS updated_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', next_at / 1e6, 'unixepoch') AS next_at,
    CAST(body AS TEXT) AS body
    FROM outbox;
";

/// Brings the file to [`REVISION`], in one transaction; one that is further already stays as it is. The
/// file's version is not above [`VERSION`].
///
/// # Errors
/// SQLite's; the file is then as it was.
pub(super) fn migrate(
    connection: &mut Connection,
    from: i32,
    id_of_new: &str,
) -> rusqlite::Result<()> {
    let done = usize::try_from(from).unwrap_or_default();
    if done >= MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for step in &MIGRATIONS[done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    if from == 0 {
        // With its tables: a file that has them and not this row would tell nobody its revision.
        Meta::new(id_of_new).insert(&transaction)?;
    } else {
        transaction.execute("UPDATE meta SET revision = ?1", [REVISION])?;
    }
    transaction.commit()?;
    if from > 0 {
        tracing::info!(
            from,
            to = REVISION,
            "the ledger's schema was brought up to date"
        );
    }
    Ok(())
}
