//! Open files: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process opens besides connections: its ledger, listeners, the log, runtimes.
const OTHERS: u64 = 64;

/// Raises the limit of open files as far as the system lets us, and warns if that is too few for so many
/// connections, inbound ones and those to backends taken together.
pub fn provide_descriptors(connections: usize) {
    let before = getrlimit(Resource::Nofile);
    // None stands for no limit.
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files can't be raised");
            before.current
        }
    };
    if let Some((limit, needed)) = shortage(limit, connections) {
        tracing::warn!(
            process.max_open_files = limit,
            tikigate.needed = needed,
            "the process may open fewer files than it may need connections: raise its limit (LimitNOFILE, \
             ulimit -n) or lower server.max_connections"
        );
    }
}

/// The limit and what is needed, if that is more.
fn shortage(limit: Option<u64>, connections: usize) -> Option<(u64, u64)> {
    let needed = (connections as u64).saturating_add(OTHERS);
    limit
        .filter(|limit| *limit < needed)
        .map(|limit| (limit, needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_are_noticed() {
        assert_eq!(shortage(Some(1024), 1000), Some((1024, 1064)));
        assert_eq!(shortage(Some(1064), 1000), None);
        assert_eq!(shortage(None, usize::MAX), None);
    }
}
