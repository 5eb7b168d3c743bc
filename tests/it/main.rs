//! Integration tests: the library and the real binary, over real sockets.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, and nobody imports a test"
)]

mod admin;
mod architecture;
mod backends;
mod bad_input;
mod client;
mod commands;
mod crash;
mod documents;
mod edge;
mod fake_tiki;
mod floods;
mod fuzzed;
mod hostile;
mod image;
mod kubernetes;
mod life;
mod monitoring;
mod outbound;
mod outcomes;
mod passing;
mod postgres;
mod promises;
mod real_backends;
mod reload;
mod server;
mod spans;
mod steps;
mod support;
mod vectors;
