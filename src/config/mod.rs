//! The configuration: what was written (`schema`), how it is read (`load`), what it means ([`Settings`]).
//!
//! ```text
//! text ──▶ tree ──▶ environment overrides ──▶ schema ──▶ meaning ──▶ checks ──▶ Settings
//!          values with their places           typed       defaults,   between
//!                                             fields      bounds,     parts
//!                                                         secrets
//! ```
//! Each stage reports what is wrong and goes on, so that all problems are told at once.

mod bounded;
mod checks;
mod database_url;
mod effective;
mod environment;
mod load;
mod meaning;
mod problem;
mod schema;
mod secret;
mod settings;
mod tls;
mod tree;
mod units;
mod value;
mod watch;

#[cfg(test)]
mod tests;

pub(crate) use database_url::DatabaseUrl;
pub use effective::effective;
pub use load::{Loaded, Reading, default_path, load, load_text, load_watched};
pub use problem::{Problem, Severity};
pub use secret::Secret;
pub use settings::*;
pub use watch::WatchedFile;
