//! What is asserted of a server before a connection to it is used, and how a server that may have
//! forgotten something is told.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::fault::OpenError;
use super::schema::SHARDS;
use super::session::Session;

const OLDEST_SERVER: i32 = 130_000;

/// What is worth knowing of a server.
pub(super) struct Server {
    pub(super) identity: Identity,
}

/// Which history of which cluster of databases a server continues. A promoted standby and a restored
/// backup start another timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) system: String,
    pub(super) timeline: i64,
}

/// Asks the server what it is.
///
/// # Errors
/// What makes it unfit.
pub(super) async fn server(session: &Session) -> Result<Server, OpenError> {
    // The control file may name the old timeline for a while after a promotion; the name of the file
    // that is written to names the new one at once.
    const ASK: &str = "
        select current_setting('server_version_num')::int, current_setting('server_encoding'),
            current_setting('fsync') = 'on', pg_is_in_recovery(),
            current_setting('transaction_read_only') = 'on',
            (select system_identifier::text from pg_control_system()),
            case when pg_is_in_recovery() then '00000000'
                else pg_walfile_name(pg_current_wal_lsn()) end,
            clock_timestamp()";
    let row = session.client.query_one(ASK, &[]).await?;
    let version: i32 = row.try_get(0)?;
    if version < OLDEST_SERVER {
        return Err(OpenError::OldServer(version / 10_000));
    }
    let encoding: String = row.try_get(1)?;
    if encoding != "UTF8" {
        return Err(OpenError::Encoding(encoding));
    }
    if !row.try_get::<_, bool>(2)? {
        return Err(OpenError::FsyncOff);
    }
    if row.try_get(3)? {
        return Err(OpenError::ReadOnly("it is a standby"));
    }
    if row.try_get(4)? {
        return Err(OpenError::ReadOnly("it is set to read only"));
    }
    warn_of_skew(row.try_get(7)?);
    let file: &str = row.try_get(6)?;
    let timeline = file
        .get(..8)
        .and_then(|hex| i64::from_str_radix(hex, 16).ok());
    let identity = Identity {
        system: row.try_get(5)?,
        timeline: timeline.unwrap_or_default(),
    };
    Ok(Server { identity })
}

/// Until when an attempt may run is told by each gate's own clock, with a minute to spare.
fn warn_of_skew(theirs: SystemTime) {
    const NOTABLE: Duration = Duration::from_secs(20);
    let ours = SystemTime::now();
    let skew = match ours.duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    if skew > NOTABLE {
        tracing::warn!(
            tikigate.seconds = skew.as_secs(),
            "this host's clock and the database's differ: gates that share a ledger need clocks \
             that agree, so set them by NTP"
        );
    }
}

/// What this process saw last of the ledger.
#[derive(Default)]
pub(super) struct Memory(Mutex<Option<Seen>>);

#[derive(Clone)]
struct Seen {
    ledger: String,
    identity: Identity,
    generation: i64,
}

/// Compares the server with the one that the ledger was last written on, and the ledger with the one
/// that this process saw last. Where they differ, what was confirmed once may be gone: the ledger's
/// generation is raised and its unknown keys are held, before anything else is done with it.
///
/// # Errors
/// The server's.
pub(super) async fn identity(
    session: &Session,
    server: &Server,
    memory: &Memory,
) -> Result<(), OpenError> {
    let stored = stored(session, "").await?;
    let before = memory
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let now = match difference(&stored, &server.identity, before.as_ref()) {
        None => stored,
        Some(_) => quarantine(session, server, before.as_ref()).await?,
    };
    *memory.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    Ok(())
}

async fn stored(session: &Session, lock: &str) -> Result<Seen, OpenError> {
    let ask =
        format!("select id, system_identifier, timeline, generation from tikigate.ledger {lock}");
    let row = session.client.query_one(&ask, &[]).await?;
    Ok(Seen {
        ledger: row.try_get(0)?,
        identity: Identity {
            system: row.try_get(1)?,
            timeline: row.try_get(2)?,
        },
        generation: row.try_get(3)?,
    })
}

/// Why the ledger may have forgotten something, if so.
fn difference(stored: &Seen, server: &Identity, before: Option<&Seen>) -> Option<String> {
    if stored.identity.system != server.system {
        return Some("the database is on another server than before".to_owned());
    }
    if stored.identity.timeline != server.timeline {
        return Some(format!(
            "the database server went from timeline {} to {}: a standby was promoted, or a backup restored",
            stored.identity.timeline, server.timeline
        ));
    }
    let before = before?;
    if before.ledger != stored.ledger {
        return Some("the database holds another ledger than before".to_owned());
    }
    // A raised generation says that somebody noticed already.
    let unnoticed = stored.generation <= before.generation;
    if stored.generation < before.generation || unnoticed && before.identity != *server {
        return Some("the database went back to an earlier state".to_owned());
    }
    None
}

async fn quarantine(
    session: &Session,
    server: &Server,
    before: Option<&Seen>,
) -> Result<Seen, OpenError> {
    session.client.batch_execute("begin").await?;
    let stored = stored(session, "for update").await?;
    // Another connection may have done it meanwhile.
    let Some(cause) = difference(&stored, &server.identity, before) else {
        session.client.batch_execute("rollback").await?;
        return Ok(stored);
    };
    tracing::error!(
        cause,
        "the ledger may have forgotten something: keys that it doesn't know are held until the \
         quarantine is lifted (tikigate ledger lift-quarantine)"
    );
    let least = before.map_or(0, |before| before.generation);
    session
        .client
        .execute(
            "update tikigate.ledger set system_identifier = $1, timeline = $2,
                generation = greatest(generation, $3)",
            &[&server.identity.system, &server.identity.timeline, &least],
        )
        .await?;
    session
        .client
        .execute("select tikigate.enter_quarantine($1)", &[&cause])
        .await?;
    let now = self::stored(session, "").await?;
    session
        .commit()
        .await
        .map_err(|fault| OpenError::Unreachable(fault.to_string()))?;
    Ok(now)
}

/// A part of the kept counts for this connection alone, as long as there are enough of them.
pub(super) async fn take_shard(session: &Session) -> Result<i32, OpenError> {
    /// Names the locks among all that the database's users may take: "tkgs".
    const LOCKS: i32 = 0x746b_6773;
    const TAKE: &str = "
        select n from generate_series(0, $2 - 1) n where pg_try_advisory_lock($1, n) limit 1";
    let row = session.client.query_opt(TAKE, &[&LOCKS, &SHARDS]).await?;
    if let Some(row) = row {
        return Ok(row.try_get(0)?);
    }
    // Shared with another connection: it only means waiting for each other now and then.
    let row = session
        .client
        .query_one("select pg_backend_pid() % $1", &[&SHARDS])
        .await?;
    Ok(row.try_get(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(system: &str, timeline: i64) -> Identity {
        Identity {
            system: system.to_owned(),
            timeline,
        }
    }

    fn seen(ledger: &str, timeline: i64, generation: i64) -> Seen {
        Seen {
            ledger: ledger.to_owned(),
            identity: identity("7", timeline),
            generation,
        }
    }

    #[test]
    fn the_server_that_was_written_on_is_believed() {
        let stored = seen("a", 1, 0);
        let here = identity("7", 1);
        assert_eq!(difference(&stored, &here, None), None);
        assert_eq!(difference(&stored, &here, Some(&stored)), None);
        // Somebody else noticed a promotion first.
        let raised = seen("a", 2, 1);
        assert_eq!(
            difference(&raised, &identity("7", 2), Some(&seen("a", 1, 0))),
            None
        );
    }

    #[test]
    fn any_other_is_not() {
        let stored = seen("a", 1, 4);
        let cases = [
            (identity("8", 1), None, "another server"),
            (identity("7", 2), None, "timeline 1 to 2"),
            (identity("7", 1), Some(seen("b", 1, 4)), "another ledger"),
            (identity("7", 1), Some(seen("a", 1, 5)), "earlier state"),
            // The old primary came back beside the new one.
            (identity("7", 1), Some(seen("a", 2, 4)), "earlier state"),
        ];
        for (server, before, told) in cases {
            let cause = difference(&stored, &server, before.as_ref()).unwrap();
            assert!(cause.contains(told), "{cause}");
        }
    }
}
