//! Integration tests: the library and the real binary, over real sockets.

mod admin;
