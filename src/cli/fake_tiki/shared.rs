//! What all connections share, and what a call does to it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::books::{Books, Ipn, Taken, Transaction};
use super::caller::{self, Outgoing, Reply, Resending, Try, milliseconds};
use super::http::{Answer, Head};
use super::orders::{Action, Call, Form, Order, Orders};
use super::seen::{CalledFirst, Counts, Log, Seen, Signatures};
use super::signature::{self, Keys, Verified, Window};
use super::{Clock, Options};

/// What of a body is kept.
const KEPT_BODY: usize = 64 * 1024;

/// The books, the orders and what was seen, and how to check and to answer.
pub(super) struct Shared {
    keys: Keys,
    window: Window,
    base: String,
    form: Form,
    strict_repeats: bool,
    clock: Clock,
    state: Mutex<State>,
    total: watch::Sender<u64>,
    webviews: AtomicU64,
}

struct State {
    books: Books,
    orders: Orders,
    log: Log,
    signatures: Signatures,
}

/// A call that was checked and listed.
pub(super) struct Arrival {
    pub(super) number: u64,
    /// What to answer to one that is refused.
    pub(super) verdict: Result<Accepted, Answer>,
}

/// A call that may be answered.
pub(super) struct Accepted {
    pub(super) action: Option<Action>,
    asked: Asked,
    client: String,
}

/// What a call asks for.
enum Asked {
    Ipn(Result<Ipn, String>),
    Status(Option<String>),
    Webview { is_object: bool },
    Other { path: String },
}

impl Asked {
    fn read(call: Call, rest: &str, body: &[u8]) -> Self {
        match call {
            Call::Ipn => Self::Ipn(Ipn::parse(body)),
            Call::Status => Self::Status(asked_transaction(rest)),
            Call::Webview => Self::Webview {
                is_object: matches!(serde_json::from_slice(body), Ok(Value::Object(_))),
            },
            Call::Other | Call::Outside => Self::Other {
                path: rest.to_owned(),
            },
        }
    }

    fn transaction(&self) -> Option<&str> {
        match self {
            Self::Ipn(Ok(ipn)) => Some(&ipn.transaction),
            Self::Status(Some(id)) => Some(id),
            _ => None,
        }
    }
}

/// The id of `/transaction?tiki_transaction_id=ID`, which has to be all of the query.
fn asked_transaction(rest: &str) -> Option<String> {
    let (_, query) = rest.split_once('?')?;
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    match (pairs.next(), pairs.next()) {
        (Some((name, id)), None) if name == "tiki_transaction_id" && !id.is_empty() => {
            Some(id.into_owned())
        }
        _ => None,
    }
}

impl Shared {
    pub(super) fn new(options: &Options) -> Self {
        let clients = options
            .clients
            .iter()
            .map(|(client, secret)| (client.as_str(), secret.as_slice()));
        let window = Window {
            age: options.max_age,
            ahead: options.max_ahead,
        };
        Self {
            keys: Keys::new(options.family, clients),
            window,
            base: options.base_path.trim_end_matches('/').to_owned(),
            form: options.envelope,
            strict_repeats: options.strict_repeats,
            clock: Arc::clone(&options.clock),
            state: Mutex::new(State {
                books: Books::new(options.auto_create),
                orders: Orders::default(),
                log: Log::new(options.seen_kept),
                signatures: Signatures::new(milliseconds(window.age.saturating_add(window.ahead))),
            }),
            total: watch::Sender::new(0),
            webviews: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    /// What a call is, and its path and query below the base path.
    fn place<'h>(&self, head: &'h Head) -> (Call, &'h str) {
        let rest = match head.target.strip_prefix(&self.base) {
            Some(rest) if rest.is_empty() || rest.starts_with(['/', '?']) => rest,
            _ => return (Call::Outside, &head.target),
        };
        let path = rest.split('?').next().unwrap_or_default();
        let call = match (head.method.as_str(), path) {
            ("POST", "/payment/ipn") => Call::Ipn,
            ("GET", "/transaction") => Call::Status,
            ("POST", "/webview") => Call::Webview,
            _ => Call::Other,
        };
        (call, rest)
    }

    /// Whether an order wants this call to be reset before its body is read; it is listed then.
    pub(super) fn resets_at_once(&self, head: &Head) -> bool {
        let (call, _) = self.place(head);
        let mut state = self.state();
        if !state.orders.take_reset(call) {
            return false;
        }
        let mut seen = self.seen(call, head, b"");
        seen.order = Some(Action::ResetAtOnce);
        self.list(&mut state, seen);
        true
    }

    /// Checks a call, lists it, and takes the order that it uses.
    pub(super) fn receive(&self, head: &Head, body: &[u8]) -> Arrival {
        let (call, rest) = self.place(head);
        let mut seen = self.seen(call, head, body);
        if call == Call::Outside {
            let sentence = format!("there is nothing outside of {}", self.base);
            return self.refuse(seen, Answer::sentence(404, &sentence));
        }
        let signed = match head.method.as_str() {
            "GET" => rest.as_bytes(),
            _ => body,
        };
        let asked = Asked::read(call, rest, body);
        seen.transaction = asked.transaction().map(str::to_owned);
        let verified = self
            .keys
            .verify(&head.headers, signed, seen.at_ms, self.window);
        let verified: Verified = match verified {
            Ok(verified) => verified,
            Err(why) => {
                let answer = Answer::sentence(401, &format!("signature refused: {why}"));
                seen.signature = why;
                return self.refuse(seen, answer);
            }
        };
        seen.signature = "ok".to_owned();
        seen.client = Some(verified.client.clone());
        let mut state = self.state();
        seen.repeated_signature = state.signatures.repeats(&verified, seen.at_ms);
        if let Some(answer) = self.fault_of_form(&seen, rest) {
            drop(state);
            return self.refuse(seen, answer);
        }
        let action = state.orders.take(call, seen.transaction.as_deref());
        seen.order.clone_from(&action);
        let number = self.list(&mut state, seen);
        Arrival {
            number,
            verdict: Ok(Accepted {
                action,
                asked,
                client: verified.client,
            }),
        }
    }

    /// What is wrong with a call beside its signature.
    fn fault_of_form(&self, seen: &Seen, rest: &str) -> Option<Answer> {
        let refuse = |status, sentence: &str| Some(Answer::sentence(status, sentence));
        if seen.repeated_signature && self.strict_repeats {
            return refuse(401, "signature refused: it came before");
        }
        match seen.method.as_str() {
            "POST" => {
                let json = signature::only(&seen.headers, "content-type").is_ok_and(|value| {
                    let essence = value.split(';').next().unwrap_or_default().trim();
                    essence.eq_ignore_ascii_case("application/json")
                });
                if !json {
                    return refuse(415, "the content-type of a POST is application/json");
                }
                if seen.call == Call::Ipn && rest.contains('?') {
                    return refuse(400, "payment/ipn takes no query");
                }
            }
            "GET" if !seen.body.is_empty() => return refuse(400, "a GET has no body"),
            "GET" => {}
            _ => return refuse(405, "the methods are GET and POST"),
        }
        let path = rest.split('?').next().unwrap_or_default();
        if seen.call == Call::Other && ["/payment/ipn", "/transaction", "/webview"].contains(&path)
        {
            return refuse(405, &format!("{path} takes the other method"));
        }
        None
    }

    fn refuse(&self, mut seen: Seen, answer: Answer) -> Arrival {
        let mut state = self.state();
        seen.status = Some(answer.status);
        state.log.counts.refused_signatures +=
            u64::from(!matches!(seen.signature.as_str(), "ok" | "unchecked"));
        Arrival {
            number: self.list(&mut state, seen),
            verdict: Err(answer),
        }
    }

    fn seen(&self, call: Call, head: &Head, body: &[u8]) -> Seen {
        let kept = &body[..body.len().min(KEPT_BODY)];
        Seen {
            number: 0,
            at_ms: self.now(),
            call,
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            body: String::from_utf8_lossy(kept).into_owned(),
            signature: "unchecked".to_owned(),
            client: None,
            transaction: None,
            repeated_signature: false,
            order_violation: false,
            final_changed: false,
            applied: false,
            order: None,
            status: None,
            code: None,
            called_first: None,
        }
    }

    fn list(&self, state: &mut State, seen: Seen) -> u64 {
        let number = state.log.add(seen);
        self.total.send_replace(number);
        number
    }

    /// Does what the call asks for, and says what is to be answered.
    pub(super) fn apply(&self, number: u64, accepted: &Accepted) -> Answer {
        let client = &accepted.client;
        match &accepted.asked {
            Asked::Ipn(Err(_)) => self.coded(1, None),
            Asked::Ipn(Ok(ipn)) => {
                let mut state = self.state();
                let result = state.books.take(ipn, client);
                if let Ok(taken) = result {
                    let counts = &mut state.log.counts;
                    counts.order_violations += u64::from(taken.order_violation);
                    counts.finals_changed += u64::from(taken.final_changed);
                    state.log.update(number, |seen| {
                        seen.applied = true;
                        seen.order_violation = taken.order_violation;
                        seen.final_changed = taken.final_changed;
                    });
                }
                self.coded(result.err().unwrap_or(0), None)
            }
            Asked::Status(None) => self.plain(1),
            Asked::Status(Some(id)) => {
                let state = self.state();
                match state.books.show(id, client) {
                    Ok(transaction) => shown(transaction),
                    Err(code) => self.plain(code),
                }
            }
            Asked::Webview { is_object: false } => self.plain(1),
            Asked::Webview { is_object: true } => {
                let number = self.webviews.fetch_add(1, Ordering::Relaxed) + 1;
                let url = format!("https://webview.tiki.example/{number}");
                success(&json!({ "url": url }))
            }
            Asked::Other { path } => success(&json!({ "path": path })),
        }
    }

    /// An answer to an IPN in the form that is asked for, else in the usual one.
    pub(super) fn coded(&self, code: u32, form: Option<Form>) -> Answer {
        match (form.unwrap_or(self.form), code) {
            (Form::Code, _) => self.plain(code),
            (Form::Partner, 0) => {
                let body = json!({ "data": { "status": "success" } });
                Answer::json(200, Some(0), &body)
            }
            (Form::Partner, _) => {
                let error = json!({ "code": code.to_string(), "message": message(code) });
                let body = json!({ "data": null, "error": error });
                Answer::json(500, Some(code), &body)
            }
        }
    }

    fn plain(&self, code: u32) -> Answer {
        if code == 0 {
            return success(&json!({}));
        }
        let body = json!({ "code": code, "message": message(code) });
        Answer::json(200, Some(code), &body)
    }

    /// Notes what is answered; before its first byte is sent, so that whoever has it finds it noted.
    pub(super) fn note_answer(&self, number: u64, answer: &Answer) {
        self.state().log.update(number, |seen| {
            seen.status = Some(answer.status);
            seen.code = answer.code;
        });
    }

    /// Makes the call that an order wants to be made first, and notes what came of it.
    pub(super) async fn call_first(&self, number: u64, outgoing: &Outgoing) {
        let began = Instant::now();
        let result = caller::call(&self.keys, outgoing, self.now()).await;
        let called = CalledFirst {
            status: result.as_ref().ok().map(|reply| reply.status),
            error: result.err().map(|error| error.to_string()),
            ms: milliseconds(began.elapsed()),
        };
        self.state()
            .log
            .update(number, |seen| seen.called_first = Some(called));
    }

    pub(super) fn count_connection(&self) {
        self.state().log.counts.connections += 1;
    }

    pub(super) fn count_malformed(&self) {
        self.state().log.counts.malformed += 1;
    }

    pub(super) fn put_transaction(&self, transaction: Transaction) {
        self.state().books.put(transaction);
    }

    pub(super) fn transactions(&self) -> Vec<Transaction> {
        let state = self.state();
        state.books.all().map(|(it, _)| it.clone()).collect()
    }

    pub(super) fn transaction(&self, id: &str) -> Option<(Transaction, Taken)> {
        self.state().books.get(id).cloned()
    }

    pub(super) fn push_order(&self, order: Order) {
        self.state().orders.push(order);
    }

    pub(super) fn orders(&self) -> Vec<Order> {
        self.state().orders.all().cloned().collect()
    }

    pub(super) fn clear_orders(&self) {
        self.state().orders.clear();
    }

    pub(super) fn seen_after(&self, number: u64) -> (u64, Vec<Seen>) {
        let state = self.state();
        let seen = state.log.after(number).cloned().collect();
        (state.log.total(), seen)
    }

    pub(super) fn counts(&self) -> Counts {
        let state = self.state();
        let mut counts = state.log.counts.clone();
        counts.taken = state
            .books
            .all()
            .map(|(it, taken)| (it.tiki_transaction_id.clone(), *taken))
            .collect();
        counts
    }

    pub(super) async fn wait_for_calls(&self, total: u64) {
        let mut watch = self.total.subscribe();
        // The sender lives as long as `self`.
        let _ = watch.wait_for(|now| *now >= total).await;
    }

    pub(super) async fn call(&self, outgoing: &Outgoing) -> io::Result<Reply> {
        caller::call(&self.keys, outgoing, self.now()).await
    }

    /// One call, told like a series of tries.
    pub(super) async fn call_once(&self, outgoing: &Outgoing) -> io::Result<Vec<Try>> {
        let began = Instant::now();
        let (reply, error) = match self.call(outgoing).await {
            Ok(reply) => (Some(reply), None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(vec![Try {
            after_ms: 0,
            ms: milliseconds(began.elapsed()),
            reply,
            error,
        }])
    }

    pub(super) async fn resend(
        &self,
        outgoing: &Outgoing,
        how: &Resending,
    ) -> io::Result<Vec<Try>> {
        caller::resend(&self.keys, outgoing, how, || self.now()).await
    }
}

fn success(data: &Value) -> Answer {
    let body = json!({ "code": 0, "message": "success", "data": data });
    Answer::json(200, Some(0), &body)
}

/// The fields stand in `data`. The amount is written by hand: it is exact, and no `f64` is.
fn shown(transaction: &Transaction) -> Answer {
    let text = |text: &str| Value::from(text).to_string();
    let body = format!(
        r#"{{"code":0,"message":"success","data":{{"tiki_transaction_id":{},"partner_transaction_id":{},"status":"{}","amount":{}}}}}"#,
        text(&transaction.tiki_transaction_id),
        text(&transaction.partner_transaction_id),
        transaction.status.as_str(),
        transaction.amount,
    );
    Answer::text(200, Some(0), Bytes::from(body))
}

fn message(code: u32) -> &'static str {
    match code {
        0 => "success",
        1 => "invalid request",
        2 => "system error",
        3 => "transaction not found",
        4 => "not this partner's transaction",
        5 => "wrong amount",
        6 => "transaction cancelled",
        _ => "failure",
    }
}

/// Milliseconds since the epoch, by this machine.
pub(super) fn system_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        milliseconds(since.unwrap_or(Duration::ZERO))
    })
}
