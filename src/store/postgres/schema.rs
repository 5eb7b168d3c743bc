//! The tables, and how older ones are brought up to date.

use super::checks::Server;
use super::fault::OpenError;
use super::session::Session;

/// Parts that the kept counts are in.
pub(super) const SHARDS: i32 = 64;

/// Each brings the schema to the revision of its place, from 1. Never changed once released.
pub(super) const MIGRATIONS: Migrations = Migrations {
    steps: &[include_str!("schema/1.sql"), include_str!("schema/2.sql")],
    version: 1,
};

/// What a program knows of the schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migrations {
    pub(super) steps: &'static [&'static str],
    /// The least version that a program must know to use the last revision. Higher than that of the
    /// revision before only where a migration takes something away or gives it another meaning: during
    /// a rolling update gates that don't know the newest revision go on using the schema.
    pub(super) version: i32,
}

/// How long a step waits for a lock, and so how long a running gate may wait for a step.
const LOCK_PATIENCE: &str = "300ms";

/// How far the schema is.
#[derive(Clone, Copy, Debug)]
struct Schema {
    version: i32,
    revision: i32,
}

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
    migrations: Migrations,
) -> Result<(), OpenError> {
    let Migrations { steps, version } = migrations;
    let newest = steps.len() as i32;
    let usable = |schema: Schema| match schema.version > version {
        true => Err(OpenError::NewerSchema {
            found: schema.version,
            known: version,
        }),
        false => Ok(schema.revision >= newest),
    };
    match found(session).await? {
        Some(schema) if usable(schema)? => return Ok(()),
        None if require_existing => return Err(OpenError::NoLedger),
        _ => {}
    }
    // A migration takes what time it takes, and the one that somebody else began is waited for.
    let begin = format!(
        "begin; set local statement_timeout = 0; set local lock_timeout = 0;
         select pg_advisory_xact_lock({MIGRATION_LOCK})"
    );
    session.client.batch_execute(&begin).await?;
    // From here on the steps ask for locks on tables that running gates use. Behind a request that waits
    // (for a dump, for somebody's open transaction) all of them would wait too: so it is given up soon,
    // and tried again by whoever opens.
    let impatient = format!("set local lock_timeout = '{LOCK_PATIENCE}'");
    session.client.batch_execute(&impatient).await?;
    let there = found(session).await?;
    if let Some(schema) = there
        && usable(schema)?
    {
        // Somebody else was quicker. The transaction ends with nothing done.
        session.client.batch_execute("rollback").await?;
        return Ok(());
    }
    let from = there.map_or(0, |schema| schema.revision);
    for migration in steps.iter().skip(from as usize) {
        session.client.batch_execute(migration).await?;
    }
    if there.is_none() {
        let identity = &server.identity;
        session
            .client
            .execute(
                "insert into tikigate.ledger (schema_version, revision, system_identifier, timeline)
                 values ($1, $2, $3, $4)",
                &[&version, &newest, &identity.system, &identity.timeline],
            )
            .await?;
    } else {
        session
            .client
            .execute(
                "update tikigate.ledger set schema_version = $1, revision = $2",
                &[&version, &newest],
            )
            .await?;
    }
    session
        .commit()
        .await
        .map_err(|fault| OpenError::Unreachable(fault.to_string()))?;
    tracing::info!(
        from,
        to = newest,
        "the ledger's schema was brought up to date"
    );
    Ok(())
}

/// The schema as it is; none where there is none yet.
async fn found(session: &Session) -> Result<Option<Schema>, OpenError> {
    // Not `to_regclass`, which goes by what the session knew before it waited for the lock.
    let there = "
        select exists (
            select from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'tikigate' and c.relname = 'ledger')";
    let row = session.client.query_one(there, &[]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    // The first revision had no column for it.
    let schema = "
        select schema_version, coalesce((to_jsonb(ledger) ->> 'revision')::integer, 1)
        from tikigate.ledger";
    let row = session.client.query_one(schema, &[]).await?;
    Ok(Some(Schema {
        version: row.try_get(0)?,
        revision: row.try_get(1)?,
    }))
}
