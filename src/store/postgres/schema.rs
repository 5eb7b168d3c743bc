//! The tables, and how older ones are brought up to date.

use super::checks::Server;
use super::fault::OpenError;
use super::session::Session;

/// Parts that the kept counts are in.
pub(super) const SHARDS: i32 = 64;

/// Each brings the schema to the version of its place, from 1.
const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql")];

/// Names the lock among all that the database's users may take: "tkgate".
const MIGRATION_LOCK: i64 = 0x746b_6761_7465;

/// Creates or updates the tables, one process at a time.
///
/// # Errors
/// [`OpenError::NoLedger`], [`OpenError::NewerSchema`], or the server's.
pub(super) async fn bring_up_to_date(
    session: &Session,
    server: &Server,
    require_existing: bool,
) -> Result<(), OpenError> {
    let known = MIGRATIONS.len() as i32;
    let found = version(session).await?;
    match found {
        Some(found) if found == known => return Ok(()),
        Some(found) if found > known => return Err(OpenError::NewerSchema { found, known }),
        None if require_existing => return Err(OpenError::NoLedger),
        _ => {}
    }
    // A migration takes what time it takes, and waits for the one that somebody else began.
    let begin = format!(
        "begin; set local statement_timeout = 0; set local lock_timeout = 0;
         select pg_advisory_xact_lock({MIGRATION_LOCK})"
    );
    session.client.batch_execute(&begin).await?;
    let found = version(session).await?.unwrap_or(0);
    if found > known {
        return Err(OpenError::NewerSchema { found, known });
    }
    for migration in &MIGRATIONS[found as usize..] {
        session.client.batch_execute(migration).await?;
    }
    if found == 0 {
        let identity = &server.identity;
        session
            .client
            .execute(
                "insert into tikigate.ledger (schema_version, system_identifier, timeline) values ($1, $2, $3)",
                &[&known, &identity.system, &identity.timeline],
            )
            .await?;
    } else {
        session
            .client
            .execute("update tikigate.ledger set schema_version = $1", &[&known])
            .await?;
    }
    session
        .commit()
        .await
        .map_err(|fault| OpenError::Unreachable(fault.to_string()))?;
    tracing::info!(
        from = found,
        to = known,
        "the ledger's schema was brought up to date"
    );
    Ok(())
}

/// The schema's version; none where there is none yet.
async fn version(session: &Session) -> Result<Option<i32>, OpenError> {
    // Not `to_regclass`, which goes by what the session knew before it waited for the lock.
    let there = "
        select exists (
            select from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'tikigate' and c.relname = 'ledger')";
    let row = session.client.query_one(there, &[]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let version = "select schema_version from tikigate.ledger";
    let row = session.client.query_one(version, &[]).await?;
    Ok(Some(row.try_get(0)?))
}
