//! The configuration: what was written (`schema`), how it is read (`load`), what it means ([`Settings`]).

mod secret;
mod settings;

pub use secret::Secret;
pub use settings::*;
