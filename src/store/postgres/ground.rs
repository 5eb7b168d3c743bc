//! What every transaction that changes something stands on.

use tokio_postgres::Row;

use super::fault::Fault;

/// What is true of the database now. No transaction that changes a row goes without it.
pub const GROUND: &str = "
    select generation, quarantine is not null,
        current_setting('synchronous_commit') in ('on', 'remote_apply')
            and current_setting('transaction_read_only') = 'off'
    from tikigate.ledger";

/// The row of [`GROUND`].
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// Raised whenever something may have been forgotten.
    pub generation: u64,
    /// Whether keys that the ledger doesn't know are held.
    pub quarantined: bool,
}

impl Ground {
    /// Reads it.
    ///
    /// # Errors
    /// The session commits less safely than it was set up to, or there is no ledger.
    pub fn read(rows: &[Row]) -> Result<Self, Fault> {
        let row = rows.first().ok_or(Fault::Corrupt("no ledger"))?;
        let generation: i64 = row.try_get(0)?;
        if !row.try_get::<_, bool>(2)? {
            // Somebody stands between this gate and the server, and hands out other sessions.
            let text = "the session is not set up as this gate set it up: connect to the server \
                        itself, or to a pooler in session mode";
            return Err(Fault::Unavailable(text.to_owned()));
        }
        Ok(Self {
            generation: generation.cast_unsigned(),
            quarantined: row.try_get(1)?,
        })
    }
}
