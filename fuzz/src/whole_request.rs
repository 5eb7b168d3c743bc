//! Bytes on a connection, through everything, to the backend.

use std::cell::RefCell;
use std::collections::HashSet;

use super::oracle::assert_signed;
use super::stage::{Outcome, Stage};
use super::strict::{self, Request};
use super::template::Template;

/// A stage keeps what it has seen: after so many inputs a new one takes its place.
const INPUTS_A_STAGE: u32 = 1000;

struct Running {
    stage: Stage,
    inputs: u32,
    /// Keys of refunds that were forwarded.
    paid: HashSet<String>,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// What somebody sends on one connection, with the gaps of [`Template`].
///
/// # Panics
/// When anything reaches the backend that is not one clean request with its signature, or a refund
/// twice; when the gate doesn't close, or answers what is no HTTP.
pub fn whole_request(data: &[u8]) {
    RUNNING.with_borrow_mut(|running| {
        if running
            .as_ref()
            .is_some_and(|one| one.inputs >= INPUTS_A_STAGE)
        {
            *running = None;
        }
        let running = running.get_or_insert_with(|| Running {
            stage: Stage::start(),
            inputs: 0,
            paid: HashSet::new(),
        });
        running.inputs += 1;
        let bytes = Template::new(running.inputs).fill(data);
        let Outcome {
            answered,
            forwarded,
        } = running.stage.send(&bytes);
        let http = answered.starts_with(b"HTTP/1.1 ") || answered.starts_with(b"HTTP/1.0 ");
        assert!(answered.is_empty() || http, "an answer that is no HTTP");
        for bytes in forwarded {
            let text = String::from_utf8_lossy(&bytes);
            let requests = strict::read(&bytes);
            let requests = requests.unwrap_or_else(|fault| panic!("{fault:?} in {text}"));
            for request in requests {
                check(&request);
                if request.target == "/tiki/refund" {
                    let key = request.one("idempotency-key").expect("a refund's key");
                    assert!(running.paid.insert(key.to_owned()), "twice: {text}");
                }
            }
        }
    });
}

/// A request that the gate may send: one of the routes', with its own headers, and signed.
fn check(request: &Request) {
    assert_eq!(request.one("host"), Some("backend.test"));
    match (request.method.as_str(), request.target.as_str()) {
        ("POST", "/tiki/ipn" | "/tiki/order" | "/tiki/refund" | "/tiki/any") => {}
        ("GET", target) if target.split('?').next() == Some("/tiki/order-status") => {}
        (method, target) => panic!("{method} {target}"),
    }
    assert_signed(request);
}
