//! What the fuzzers call, one function a target: each takes any bytes and panics when something is
//! wrong. The test suite compiles the same functions and replays `corpus/` through them, with the
//! stable toolchain (`tests/it/fuzzed.rs`), so they use nothing but the library's public names.

pub mod cases;
mod configuration;
pub mod oracle;
mod payload;
mod proxy_header;
mod signature_headers;
mod stage;
pub mod strict;
pub mod template;
mod whole_request;

pub use configuration::configuration;
pub use payload::payload;
pub use proxy_header::proxy_header;
pub use signature_headers::signature_headers;
pub use whole_request::whole_request;

/// What a target is: any bytes in, a panic if something is wrong.
pub type Target = fn(&[u8]);

/// Every target by the name of its file in `fuzz_targets/` and of its directory in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("configuration", configuration),
    ("payload", payload),
    ("proxy_header", proxy_header),
    ("signature_headers", signature_headers),
    ("whole_request", whole_request),
];
