//! Named steps at which a test can end, pause or fail this process.
//!
//! Without the feature `failpoints` nothing of this is compiled into the program: [`reach`] is empty.
//! With it, `TIKIGATE_FAILPOINT=name=action[@n]` arms one step, for its n-th passing (from 1):
//! `kill` ends the process at once as `kill -9` does, `stop` stops it as SIGSTOP does.
//!
//! | step of an attempt | where it stands |
//! |---|---|
//! | `before_claim` | the message is known to be good; the ledger was not asked yet |
//! | `after_claim` | the claim is durable, nothing was sent |
//! | `before_first_byte` | connected, and the claim was checked once more |
//! | `after_first_byte` | the request was written to the backend's connection, or a part of it |
//! | `after_answer` | the backend's whole answer is here, not recorded |
//! | `before_record`, `after_record` | around recording what became of it |
//! | `before_reply`, `after_reply` | around writing an answer to the caller: any answer, refusals too |

/// Passes a step.
#[inline]
pub fn reach(name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::reach(name);
    let _ = name;
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    struct Armed {
        name: String,
        signal: Signal,
        passings_left: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let text = std::env::var("TIKIGATE_FAILPOINT").ok()?;
        let (name, action) = text.split_once('=')?;
        let (action, nth) = action.split_once('@').unwrap_or((action, "1"));
        let signal = match action {
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            _ => return None,
        };
        Some(Armed {
            name: name.to_owned(),
            signal,
            passings_left: AtomicU64::new(nth.parse().ok()?),
        })
    });

    pub(super) fn reach(name: &str) {
        let Some(armed) = &*ARMED else { return };
        if armed.name == name && armed.passings_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Its own process: nothing else can be hit. Where it fails, the step is passed.
            let _ = kill_process(getpid(), armed.signal);
            // Any thread may be the one that takes the signal: until it has reached this one, too,
            // nothing goes on here.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}
