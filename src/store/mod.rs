//! Durable places that the ledger, and later the outbox, keep their rows in: a SQLite file with its
//! one writer, or a PostgreSQL database. What the rows mean is not known here.

pub mod postgres;
pub mod sqlite;
