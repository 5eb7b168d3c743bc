//! Integration tests: the library and the real binary, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod support;
