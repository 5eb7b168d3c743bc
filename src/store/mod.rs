//! Durable places that the ledger, and later the outbox, keep their rows in: a SQLite file with its
//! one writer. What the rows mean is not known here.

pub mod sqlite;
