//! Integration tests: the library and the real binary, over real sockets.

// The exemption of tests covers only functions marked as such, not what they call.
#![allow(clippy::unwrap_used)]

mod vectors;
