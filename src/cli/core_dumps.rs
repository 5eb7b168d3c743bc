//! No core dumps: a process's memory has secrets in it, and messages.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Has the system write no core of this process, to a file or to a handler's pipe, and let no other
/// process of the same user read its memory. Only root can still trace it.
///
/// Where the system refuses, the process goes on as it was: the operator may have a reason.
pub(super) fn forbid() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    // The limit doesn't hold for a handler that the kernel pipes cores to; this does.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
