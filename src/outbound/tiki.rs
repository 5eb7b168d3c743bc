//! One signed call to Tiki and its whole answer.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request};
use tokio::time::Instant;

use super::account::{Account, Accounts, Unsigned};
use crate::client::{BackendAnswer, ConnectionKind, Sent, Upstream};
use crate::clock::Clock;
use crate::failpoint;

/// One runtime's way to Tiki, with connections of its own.
pub struct Tiki {
    accounts: Accounts,
    /// In the accounts' order.
    upstreams: Vec<Upstream>,
    clock: Clock,
    timeout: Duration,
    answer_limit: usize,
}

/// A call that is to be signed.
#[derive(Clone, Debug)]
pub struct TikiCall {
    /// GET signs the target, everything else the body.
    pub method: Method,
    /// Path and query below the base URL, with its slash, as it is to go out.
    pub target: String,
    /// Headers besides those of the signature and of the connection.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl TikiCall {
    /// A GET of this target.
    pub fn get(target: String) -> Self {
        Self {
            method: Method::GET,
            target,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A POST of JSON.
    pub fn post(target: &str, body: Bytes) -> Self {
        let json = HeaderValue::from_static("application/json");
        Self {
            method: Method::POST,
            target: target.to_owned(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, json)]),
            body,
        }
    }
}

/// Why a call got no whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// Whether Tiki can have seen anything of it.
    pub sent: Sent,
    /// A stable word.
    pub reason: &'static str,
    /// The library's words, for the log.
    pub detail: String,
}

/// Nothing could be signed.
const UNSIGNED: &str = "unsigned";
/// The caller's time was over.
const TOO_LATE: &str = "too_late";

impl NoAnswer {
    /// For a reason of the gate's own: nothing was sent.
    fn ours(reason: &'static str, detail: String) -> Self {
        Self {
            sent: Sent::Nothing,
            reason,
            detail,
        }
    }

    /// Whether it says nothing of Tiki.
    fn is_ours(&self) -> bool {
        self.is_too_late() || [UNSIGNED, "no_account"].contains(&self.reason)
    }

    /// Whether the caller's time was over before it was sent.
    pub fn is_too_late(&self) -> bool {
        self.reason == TOO_LATE
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Tiki {
    /// A way for the runtime that calls it. Connects to nothing yet.
    pub fn new(accounts: Accounts, clock: Clock, timeout: Duration, answer_limit: usize) -> Self {
        let upstreams = accounts.iter().map(|account| account.upstream.clone());
        Self {
            upstreams: upstreams.map(Upstream::new).collect(),
            accounts,
            clock,
            timeout,
            answer_limit,
        }
    }

    /// Who may be signed as.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// When a call that begins now is over.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Signs the call as this account, sends it once and reads the whole answer, by `deadline`.
    ///
    /// `may_begin` is asked when the connection is there, right before the first byte: a call whose
    /// time is over must not go out.
    ///
    /// # Errors
    /// No whole answer; says whether anything was sent.
    pub async fn call(
        &self,
        account: &Account,
        call: &TikiCall,
        deadline: Instant,
        may_begin: impl FnOnce() -> bool,
    ) -> Result<BackendAnswer, NoAnswer> {
        let answered = self.send(account, call, deadline, may_begin).await;
        match &answered {
            Ok(_) => account.note(None),
            Err(fault) if fault.is_ours() => {}
            Err(fault) => account.note(Some(fault.reason)),
        }
        answered
    }

    async fn send(
        &self,
        account: &Account,
        call: &TikiCall,
        deadline: Instant,
        may_begin: impl FnOnce() -> bool,
    ) -> Result<BackendAnswer, NoAnswer> {
        let Some(upstream) = self.upstreams.get(account.index) else {
            return Err(NoAnswer::ours("no_account", "no such account".to_owned()));
        };
        let reserved = upstream
            .reserve(ConnectionKind::Pooled, deadline)
            .await
            .map_err(|fault| NoAnswer {
                sent: Sent::Nothing,
                reason: fault.kind.as_str(),
                detail: fault.to_string(),
            })?;
        // Signed when there is somebody to send it to: the signature's time counts at Tiki.
        let request = self
            .signed(account, call)
            .map_err(|unsigned| NoAnswer::ours(UNSIGNED, unsigned.to_string()))?;
        if !may_begin() {
            let detail = "its time was over before it was sent";
            return Err(NoAnswer::ours(TOO_LATE, detail.to_owned()));
        }
        failpoint::reach("outbound_before_send");
        let answer = reserved
            .send(request, deadline, self.answer_limit)
            .await
            .map_err(|fault| NoAnswer {
                sent: fault.sent,
                reason: fault.kind.as_str(),
                detail: fault.to_string(),
            })?;
        if answer.oversized {
            return Err(NoAnswer {
                sent: Sent::Maybe,
                reason: "answer_too_large",
                detail: "the answer is larger than outbound.answer_limit".to_owned(),
            });
        }
        Ok(answer)
    }

    fn signed(&self, account: &Account, call: &TikiCall) -> Result<Request<Bytes>, Unsigned> {
        let over = match call.method {
            Method::GET => call.target.as_bytes(),
            _ => &call.body,
        };
        let signed = account.sign(self.clock.now(), over)?;
        let mut request = Request::new(call.body.clone());
        *request.method_mut() = call.method.clone();
        let target = format!("{}{}", account.base_path, call.target);
        *request.uri_mut() = target.parse().map_err(|_| Unsigned::Target)?;
        let headers = request.headers_mut();
        headers.insert(HOST, account.upstream.host.clone());
        headers.extend(call.headers.clone());
        let family = account.family;
        headers.insert(family.timestamp_header().clone(), signed.timestamp);
        headers.insert(family.client_id_header().clone(), signed.client_id);
        headers.insert(family.signature_header().clone(), signed.signature);
        Ok(request)
    }
}
