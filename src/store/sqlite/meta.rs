//! What holds for the whole file: one row, written with each batch.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _};

use super::schema;
use super::watermark::Mark;
use super::writer;

/// The file's own state. A batch changes a copy, which counts once the batch is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The file's id: never two files alike, but for copies.
    pub ledger: Arc<str>,
    /// Raised whenever something may have been forgotten.
    pub generation: u64,
    /// Batches so far that changed something.
    pub sequence: u64,
    /// The number that the next record gets; never used twice.
    pub next_record: u64,
    /// Records by state, in the order claimed, released, done, unknown.
    pub counts: [u64; 4],
    /// Why keys that the file doesn't know are held.
    pub quarantine: Option<Quarantine>,
}

/// Why unknown keys are held.
pub type Quarantine = Arc<str>;

impl Meta {
    /// Of a file that is new.
    pub(super) fn new(ledger: &str) -> Self {
        Self {
            ledger: Arc::from(ledger),
            generation: 1,
            sequence: 0,
            next_record: 1,
            counts: [0; 4],
            quarantine: None,
        }
    }

    /// Raises the generation and enters the quarantine.
    pub fn enter_quarantine(&mut self, cause: &str) {
        self.generation += 1;
        self.quarantine = Some(Arc::from(cause));
    }

    /// Raises the file's state to that of one that is lost. The numbers that it may have given to records
    /// are not given again: people wrote them down.
    pub(super) fn outgrow(&mut self, generation: u64, sequence: u64) {
        let lost = sequence.saturating_sub(self.sequence);
        let numbers = lost.saturating_mul(writer::BATCH as u64);
        self.next_record = self.next_record.saturating_add(numbers);
        self.generation = self.generation.max(generation);
        self.sequence = self.sequence.max(sequence);
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            ledger: self.ledger.to_string(),
            generation: self.generation,
            sequence: self.sequence,
        }
    }

    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let mut select = connection.prepare_cached(
            "SELECT ledger, generation, sequence, next_record, claimed, released, done, unknown, \
             quarantine FROM meta",
        )?;
        let number = |row: &rusqlite::Row<'_>, column: usize| {
            row.get::<_, i64>(column).map(i64::cast_unsigned)
        };
        let read = select.query_row((), |row| {
            Ok(Self {
                ledger: row.get::<_, String>(0)?.into(),
                generation: number(row, 1)?,
                sequence: number(row, 2)?,
                next_record: number(row, 3)?,
                counts: [
                    number(row, 4)?,
                    number(row, 5)?,
                    number(row, 6)?,
                    number(row, 7)?,
                ],
                quarantine: row.get::<_, Option<String>>(8)?.map(Into::into),
            })
        });
        read.optional()
    }

    pub(super) fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute(
            "INSERT INTO meta (only, ledger, generation, sequence, next_record, claimed, released, \
             done, unknown, revision) VALUES (1, ?1, 0, 0, 0, 0, 0, 0, 0, ?2)",
            (&*self.ledger, schema::REVISION),
        )?;
        self.save(connection)
    }

    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self {
            ledger: _,
            generation,
            sequence,
            next_record,
            counts: [claimed, released, done, unknown],
            quarantine,
        } = self;
        let mut update = connection.prepare_cached(
            "UPDATE meta SET generation = ?1, sequence = ?2, next_record = ?3, claimed = ?4, \
             released = ?5, done = ?6, unknown = ?7, quarantine = ?8 \
             WHERE only = 1",
        )?;
        update.execute((
            generation.cast_signed(),
            sequence.cast_signed(),
            next_record.cast_signed(),
            claimed.cast_signed(),
            released.cast_signed(),
            done.cast_signed(),
            unknown.cast_signed(),
            quarantine.as_deref(),
        ))?;
        Ok(())
    }
}
