//! tikigate: a reverse proxy that makes a legacy partner backend safe to connect to Tiki.
//!
//! ```text
//! Tiki ──▶ server     connections, their deadlines and caps            (server)
//!          gate       observe · respond · admit                        (gate: tower layers)
//!                     route → authenticate → freshen → validate → bind
//!                     → throttle → idempotency                         (gate: typed steps, over tiki and ledger)
//!          client     one clean request on a fresh or kept connection  (client)
//!              └────▶ the legacy backend
//!
//! the backend ─▶ outbound   its plain calls signed for Tiki; the outbox         (outbound)
//!
//! people ─▶ admin     liveness, readiness, metrics, the ledger's API   (admin)
//!           cli       the commands                                     (cli)
//!           app       settings in, a running gate out; the drain       (app)
//! ```
//!
//! [`tiki`] is Tiki's protocol alone, without I/O, for use in other programs too. [`gate`] is the
//! product: read it first.

pub mod admin;
pub mod app;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod failpoint;
pub mod gate;
pub mod ledger;
pub mod metrics;
pub mod net;
pub mod outbound;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tiki;
pub mod traces;
