//! What several tests share.

#[allow(
    dead_code,
    reason = "it offers what a test of a process needs, whether or not one uses each part today"
)]
pub mod gate_process;
