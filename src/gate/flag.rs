//! Flags of trouble, which calls set and `/readyz` reads.

use std::sync::atomic::{AtomicBool, Ordering};

/// Notes a trouble, or that it is over. Looked at first: a store on each call would move the flag's
/// cache line between the workers' cores.
pub(super) fn note(flag: &AtomicBool, trouble: bool) {
    if flag.load(Ordering::Relaxed) != trouble {
        flag.store(trouble, Ordering::Relaxed);
    }
}
