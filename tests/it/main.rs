//! Integration tests: the library and the real binary, over real sockets.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, its helpers too, and nothing outside this binary can reach them"
)]

mod server;
