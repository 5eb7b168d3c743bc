//! tikigate: a reverse proxy that makes a legacy partner backend safe to connect to Tiki.
pub mod admin;
pub mod app;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod gate;
pub mod ledger;
pub mod metrics;
pub mod net;
pub mod server;
pub mod telemetry;
pub mod tiki;
