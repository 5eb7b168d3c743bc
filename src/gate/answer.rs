//! An answer on its way to Tiki, and which of a backend's headers may come along.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES, RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::ledger::KeptAnswer;
use crate::tiki;

/// A backend's headers that are passed back. Cookies, `Server`, and all that belongs to the
/// backend's own connection stay behind.
const PASSED_BACK: [HeaderName; 6] = [
    CONTENT_TYPE,
    CONTENT_LANGUAGE,
    CONTENT_ENCODING,
    CACHE_CONTROL,
    EXPIRES,
    RETRY_AFTER,
];

/// What Tiki gets: a backend's answer, fresh or kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Status, headers and body.
    pub kept: KeptAnswer,
    /// Whether it comes from the ledger.
    pub replayed: bool,
    /// The attempt that it belongs to, where one is counted.
    pub attempt: Option<u32>,
    /// The map that the backend's head came in, emptied: the head that Tiki gets is built in it.
    pub(super) room: HeaderMap,
}

impl Answer {
    /// An answer that the ledger kept.
    pub fn replay(kept: KeptAnswer) -> Self {
        Self {
            kept,
            replayed: true,
            attempt: None,
            room: HeaderMap::new(),
        }
    }
}

/// The headers of `all` that are passed back.
pub(super) fn passed_back(all: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut kept = Vec::with_capacity(2);
    for (name, value) in all {
        if PASSED_BACK.contains(name) {
            kept.push((name.clone(), value.clone()));
        }
    }
    kept
}

/// The platform's own answer to a success.
pub(super) fn platform_success(status: StatusCode) -> KeptAnswer {
    json_answer(status, Bytes::from_static(tiki::SUCCESS_BODY.as_bytes()))
}

/// The platform's own answer to a failure.
pub(super) fn platform_failure(status: StatusCode, code: &str, message: &str) -> KeptAnswer {
    json_answer(status, Bytes::from(tiki::error_body(code, message)))
}

fn json_answer(status: StatusCode, body: Bytes) -> KeptAnswer {
    let json = HeaderValue::from_static("application/json");
    KeptAnswer {
        status,
        headers: vec![(CONTENT_TYPE, json)],
        body,
    }
}
