//! The other direction: the partner's plain calls leave signed, and its payment notices are not lost.
//!
//! ```text
//! backend ──plain──▶ listener  token · account · path · body under its limits         (listener, refusal)
//!                     ├─ any call      signed → Tiki → its answer, unchanged           (account, tiki)
//!                     └─ payment/ipn   checked → stored, durable → 202                 (outbox)
//!                                        deliver: send, signed anew each time          (outbox::deliver)
//!                                               → ask the transaction's status          (status)
//!                                               → delivered, or failed and told         (outbox::notify)
//! the gate  ──────▶ confirm    asks the status before an inbound IPN is forwarded      (confirm)
//! ```
//!
//! What this direction promises: a notice that was answered 202 is at Tiki, or a person is told that it
//! isn't; "refund the customer" is said only of a notice that Tiki can't have taken; what Tiki could
//! have taken once is never asked for twice by a call that isn't idempotent (`webview`).

mod account;
mod body;
pub mod confirm;
mod limit;
mod listener;
pub mod outbox;
mod refusal;
mod status;
mod tiki;
mod token;

pub use account::{Account, Accounts, Remember};
pub use listener::{Listener, ListenerService};
pub use refusal::Refusal;
pub use status::{Asked, Expected, Seen};
pub use tiki::{NoAnswer, Tiki, TikiCall};
pub use token::CallerToken;
