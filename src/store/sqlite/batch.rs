//! What the writer commits at once: jobs, the transaction that they run in, and their replies.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection};
use smallvec::SmallVec;

use super::StoreError;
use super::doorbell::Doorbell;
use super::meta::Meta;

/// A piece of work within a batch.
pub trait Job: Send {
    /// Runs the job's statements. Nothing that it learns may leave it before [`Job::committed`].
    ///
    /// # Errors
    /// SQLite's: the whole batch then fails.
    fn run(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()>;

    /// The batch is on disk, and the watermark says so: what this process knows of it follows, in the order
    /// of the jobs and before any reply.
    fn follow(&mut self) {}

    /// Reply. This is called in the runtime that the job was submitted in, where there is one.
    fn committed(self: Box<Self>);

    /// Nothing of the batch counts, though some of it may turn out to be on disk. What has to be
    /// undone then is given back as a job, which runs before anything else once the file is usable.
    fn failed(self: Box<Self>, error: &StoreError) -> Option<Box<dyn Job>>;
}

/// A job, and where its reply is waited for.
pub(super) struct Ordered {
    pub(super) job: Box<dyn Job>,
    pub(super) doorbell: Option<Arc<Doorbell>>,
}

impl Ordered {
    /// A job that is submitted here.
    pub(super) fn here(job: Box<dyn Job>) -> Self {
        Self {
            job,
            doorbell: Doorbell::here(),
        }
    }

    /// What has to be carried out once the file is usable. Its reply is its own matter.
    pub(super) fn undo(job: Box<dyn Job>) -> Self {
        Self {
            job,
            doorbell: None,
        }
    }
}

/// The transaction that jobs run in.
pub struct Batch<'c> {
    /// Its connection.
    pub connection: &'c Connection,
    /// The file's state as the batch leaves it.
    pub meta: Meta,
    /// Another one after every failure: what a job remembers of the file from before doesn't count.
    pub opening: u64,
    /// Some job changed something.
    pub(super) wrote: bool,
    /// Those that jobs of this batch have used.
    statements: SmallVec<[(&'static str, CachedStatement<'c>); 8]>,
}

impl<'c> Batch<'c> {
    /// One whose transaction has begun.
    pub(super) fn begun(connection: &'c Connection, meta: Meta, opening: u64) -> Self {
        Self {
            connection,
            meta,
            opening,
            wrote: false,
            statements: SmallVec::new(),
        }
    }

    /// A statement with this text. The connection's cache is asked once for all jobs of the batch.
    ///
    /// # Errors
    /// SQLite's, of a text that it can't use.
    pub fn statement(&mut self, sql: &'static str) -> rusqlite::Result<&mut CachedStatement<'c>> {
        // By its place in the program: to compare or hash some hundred bytes costs more.
        let known = (self.statements.iter()).position(|(known, _)| std::ptr::eq(*known, sql));
        let place = match known {
            Some(place) => place,
            None => {
                let statement = self.connection.prepare_cached(sql)?;
                self.statements.push((sql, statement));
                self.statements.len() - 1
            }
        };
        Ok(&mut self.statements[place].1)
    }

    /// The job changed something: without this the batch is not made durable.
    pub fn wrote(&mut self) {
        self.wrote = true;
    }
}

/// Replies to the jobs of a batch that is on disk.
pub(super) fn reply(mut jobs: Vec<Ordered>) {
    for ordered in &mut jobs {
        ordered.job.follow();
    }
    let mut rung_for: SmallVec<[Arc<Doorbell>; 4]> = SmallVec::new();
    for Ordered { job, doorbell } in jobs {
        match doorbell {
            None => job.committed(),
            Some(doorbell) => {
                if doorbell.lay_down(job) {
                    rung_for.push(doorbell);
                }
            }
        }
    }
    for doorbell in rung_for {
        doorbell.ring();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A job's name, and its error if it failed.
    type End = (u32, Option<String>);

    /// Does nothing, and writes down how it ended.
    pub(in super::super) struct Named {
        pub(in super::super) name: u32,
        pub(in super::super) ends: Arc<Mutex<Vec<End>>>,
    }

    impl Job for Named {
        fn run(&mut self, _: &mut Batch<'_>) -> rusqlite::Result<()> {
            Ok(())
        }

        fn committed(self: Box<Self>) {
            self.ends.lock().unwrap().push((self.name, None));
        }

        fn failed(self: Box<Self>, error: &StoreError) -> Option<Box<dyn Job>> {
            let error = Some(error.to_string());
            self.ends.lock().unwrap().push((self.name, error));
            None
        }
    }
}
