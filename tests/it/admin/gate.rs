//! A running admin listener over a table of records and a hand-set gate.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use tikigate::admin::{
    self, Access, AdminSettings, Control, Limits, Phase, Readiness, SendNow, SendNowError,
    SendingNow,
};
use tikigate::config::{AdminToken, Secret};
use tikigate::ledger::{
    Claim, ClaimOutcome, DefineError, Definition, Event, Fence, Fields, Filter, Fingerprint,
    KeptAnswer, KeptRequest, Key, Ledger, LedgerError, Marks, Owner, Page, PermitError, Policy,
    Record, RecordId, Reopening, Reply, Resolution, ResolveError, SendPermit, Settled, Settlement,
    Sighting, State, Stats, Verdict,
};
use tokio_util::sync::CancellationToken;

/// The token of `ops`.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// 2026-11-23T01:00:00Z, when every record of the table was last changed.
pub(crate) fn changed_at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_395_600)
}

/// How the table behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Works,
    Fails,
    Silent,
}

/// A ledger that is a table.
pub(crate) struct Table {
    rows: Mutex<Vec<(Record, Vec<Event>)>>,
    mode: Mutex<Mode>,
    may_run_until: Mutex<Option<SystemTime>>,
    quarantine: Mutex<Option<String>>,
    /// Who lifted it, and why.
    lifted: Mutex<Option<(String, String)>>,
    /// Rows that one page looks at.
    looked_at: AtomicUsize,
    /// Somebody resolves the record that is shown next, before whoever sees it can.
    faster: AtomicBool,
}

impl Table {
    fn new() -> Self {
        Self {
            rows: Mutex::default(),
            mode: Mutex::new(Mode::Works),
            may_run_until: Mutex::default(),
            quarantine: Mutex::default(),
            lifted: Mutex::default(),
            looked_at: AtomicUsize::new(usize::MAX),
            faster: AtomicBool::new(false),
        }
    }

    /// Lets somebody resolve the record that is shown next, before whoever sees it can.
    pub(crate) fn be_faster(&self) {
        self.faster.store(true, Ordering::SeqCst);
    }

    /// From now on one page looks at so many rows at most, so that it may be short or empty.
    pub(crate) fn look_at(&self, rows: usize) {
        self.looked_at.store(rows, Ordering::SeqCst);
    }

    pub(crate) fn quarantine_for(&self, cause: &str) {
        *self.quarantine.lock().unwrap() = Some(cause.to_owned());
    }

    /// Who lifted the quarantine, and why.
    pub(crate) fn lifted(&self) -> Option<(String, String)> {
        self.lifted.lock().unwrap().clone()
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// From now on "not applied" is refused, short of force.
    pub(crate) fn let_attempts_run_until(&self, until: SystemTime) {
        *self.may_run_until.lock().unwrap() = Some(until);
    }

    /// Adds a record and returns its id.
    pub(crate) fn add(&self, route: &str, key: &str, state: State) -> String {
        let mut rows = self.rows.lock().unwrap();
        let id = RecordId(rows.len() as u64 + 1);
        let event = |attempt, state, cause| Event {
            at: changed_at(),
            attempt,
            state,
            cause,
            by: None,
        };
        let record = Record {
            id,
            key: Key {
                namespace: route.into(),
                client: "wallet-key".into(),
                message: key.into(),
            },
            fingerprint: Fingerprint([7; 32]),
            state,
            attempt: 1,
            version: 2,
            owner: Owner(3),
            policy: Policy::Hold,
            route: route.into(),
            created_at: changed_at() - Duration::from_secs(60),
            updated_at: changed_at(),
            may_run_until: changed_at(),
            expires_at: changed_at() + Duration::from_secs(400 * 86_400),
            alarmed: false,
            answer: (state == State::Done).then(|| KeptAnswer {
                status: StatusCode::OK,
                headers: Vec::new(),
                body: Bytes::from("x".repeat(20_000)),
            }),
            fields: Fields::default(),
            marks: Marks::default(),
            hold: None,
            declared: false,
        };
        let events = vec![
            event(1, State::Claimed, "claimed".into()),
            event(1, state, "upstream_reset".into()),
        ];
        rows.push((record, events));
        id.to_string()
    }

    /// Changes a record behind everybody's back.
    pub(crate) fn change(&self, id: &str, change: impl FnOnce(&mut Record)) {
        let id: RecordId = id.parse().unwrap();
        let mut rows = self.rows.lock().unwrap();
        let (record, _) = rows.iter_mut().find(|(row, _)| row.id == id).unwrap();
        change(record);
        record.version += 1;
    }

    pub(crate) fn record(&self, id: &str) -> Record {
        self.row(id).0
    }

    /// Who resolved the record, and why.
    pub(crate) fn resolver(&self, id: &str) -> Option<(String, String)> {
        self.row(id).1.last().and_then(|event| event.by.clone())
    }

    fn row(&self, id: &str) -> (Record, Vec<Event>) {
        let id: RecordId = id.parse().unwrap();
        let rows = self.rows.lock().unwrap();
        rows.iter().find(|(row, _)| row.id == id).unwrap().clone()
    }

    fn reply<T: Unpin + Send + 'static, E: From<LedgerError> + Unpin + Send + 'static>(
        &self,
        answer: impl FnOnce() -> Result<T, E>,
    ) -> Reply<Result<T, E>> {
        match *self.mode.lock().unwrap() {
            Mode::Works => Reply::ready(answer()),
            Mode::Fails => Reply::ready(Err(LedgerError::Failed("disk is gone".into()).into())),
            Mode::Silent => Reply::waiting(std::future::pending()),
        }
    }

    fn decide(&self, resolution: Resolution) -> Result<Record, ResolveError> {
        let mut rows = self.rows.lock().unwrap();
        let row = rows.iter_mut().find(|(row, _)| row.id == resolution.id);
        let (record, events) = row.ok_or(ResolveError::NotFound)?;
        if resolution.expected != (record.state, record.attempt, record.version) {
            return Err(ResolveError::Changed(Box::new(record.clone())));
        }
        if record.state != State::Unknown {
            return Err(ResolveError::NotUnknown(record.state));
        }
        if resolution.verdict == Verdict::NotApplied {
            if record.alarmed {
                return Err(ResolveError::NoFurtherRelease);
            }
            let until = *self.may_run_until.lock().unwrap();
            if let Some(until) = until.filter(|_| !resolution.force) {
                return Err(ResolveError::MayStillRun { until });
            }
        }
        (record.state, record.answer) = match resolution.verdict {
            Verdict::NotApplied => (State::Released, None),
            Verdict::Applied(answer) | Verdict::Rejected(answer) => (State::Done, Some(answer)),
        };
        record.version += 1;
        record.declared = true;
        events.push(Event {
            at: changed_at(),
            attempt: record.attempt,
            state: record.state,
            cause: "resolved".into(),
            by: Some((resolution.by, resolution.reason)),
        });
        Ok(record.clone())
    }

    fn take_back(&self, reopening: Reopening) -> Result<Record, ResolveError> {
        let mut rows = self.rows.lock().unwrap();
        let row = rows.iter_mut().find(|(row, _)| row.id == reopening.id);
        let (record, events) = row.ok_or(ResolveError::NotFound)?;
        if reopening.expected != (record.state, record.attempt, record.version) {
            return Err(ResolveError::Changed(Box::new(record.clone())));
        }
        if !record.declared {
            return Err(ResolveError::NotDeclared);
        }
        (record.state, record.answer, record.declared) = (State::Unknown, None, false);
        record.version += 1;
        events.push(Event {
            at: changed_at(),
            attempt: record.attempt,
            state: record.state,
            cause: "reopened".into(),
            by: Some((reopening.by, reopening.reason)),
        });
        Ok(record.clone())
    }
}

impl Ledger for Table {
    fn define(&self, _: Arc<str>, _: Definition) -> Reply<Result<(), DefineError>> {
        unimplemented!()
    }
    fn claim(&self, _: Claim) -> Reply<Result<ClaimOutcome, LedgerError>> {
        unimplemented!()
    }
    fn permit(&self, _: Fence) -> Reply<Result<SendPermit, PermitError>> {
        unimplemented!()
    }
    fn settle(&self, _: Fence, _: Settlement) -> Reply<Result<Settled, LedgerError>> {
        unimplemented!()
    }
    fn lapse(&self, _: Owner) -> Reply<Result<u64, LedgerError>> {
        unimplemented!()
    }
    fn sweep(&self, _: usize) -> Reply<Result<u64, LedgerError>> {
        unimplemented!()
    }
    fn enter_quarantine(&self, _: String) -> Reply<Result<(), LedgerError>> {
        unimplemented!()
    }

    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>> {
        self.reply(|| {
            if self.quarantine.lock().unwrap().take().is_some() {
                *self.lifted.lock().unwrap() = Some((by, reason));
            }
            Ok(())
        })
    }

    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>> {
        self.reply(|| Ok(self.quarantine.lock().unwrap().clone()))
    }

    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>> {
        self.reply(|| self.decide(resolution))
    }

    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>> {
        self.reply(|| {
            let mut rows = self.rows.lock().unwrap();
            let row = rows.iter_mut().find(|(row, _)| row.id == id);
            Ok(row.map(|(record, _)| {
                let shown = record.clone();
                if self.faster.swap(false, Ordering::SeqCst) {
                    record.state = State::Done;
                    record.version += 1;
                }
                shown
            }))
        })
    }

    fn request(&self, _: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>> {
        unimplemented!()
    }
    fn reopen(&self, reopening: Reopening) -> Reply<Result<Record, ResolveError>> {
        self.reply(|| self.take_back(reopening))
    }
    fn sighted(&self, _: Sighting) -> Reply<Result<Record, ResolveError>> {
        unimplemented!()
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>> {
        self.reply(|| {
            let rows = self.rows.lock().unwrap();
            let ahead = rows.iter().map(|(record, _)| record);
            let ahead = ahead.filter(|record| filter.after.is_none_or(|after| record.id > after));
            let looked_at = self.looked_at.load(Ordering::SeqCst);
            let (mut records, mut next, mut looked) = (Vec::new(), None, 0);
            for record in ahead {
                if looked == looked_at || records.len() == filter.limit {
                    return Ok(Page { records, next });
                }
                looked += 1;
                next = Some(record.id);
                if passes(record, &filter) {
                    records.push(record.clone());
                }
            }
            next = None;
            Ok(Page { records, next })
        })
    }

    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>> {
        self.reply(|| Ok(self.row(&id.to_string()).1))
    }

    fn stats(&self) -> Reply<Result<Stats, LedgerError>> {
        self.reply(|| {
            let mut stats = Stats::default();
            for (record, _) in self.rows.lock().unwrap().iter() {
                let place = State::ALL.iter().position(|state| *state == record.state);
                stats.records[place.unwrap()] += 1;
            }
            Ok(stats)
        })
    }
}

fn passes(record: &Record, filter: &Filter) -> bool {
    let created = record.created_at;
    filter.state.is_none_or(|state| state == record.state)
        && (filter.route.as_deref()).is_none_or(|route| route == &*record.route)
        && (filter.key.as_deref()).is_none_or(|key| *record.key.message == *key)
        && (filter.query.as_deref()).is_none_or(|q| record.key.message.contains(q))
        && (filter.reference.as_deref()).is_none_or(|text| record.fields.mentions(text))
        && filter.created_from.is_none_or(|from| created >= from)
        && filter.created_until.is_none_or(|until| created < until)
}

/// A gate that is what the test says, and goes when it was seen draining often enough.
pub(crate) struct Hand {
    readiness: Mutex<Readiness>,
    sending_now: Mutex<Option<Result<SendNow, SendNowError>>>,
    sent_now: Mutex<Vec<RecordId>>,
    drained_by: Mutex<Option<String>>,
    looks_until_gone: AtomicU32,
    shutdown: CancellationToken,
}

impl Hand {
    pub(crate) fn set(&self, phase: Phase, degraded: &[&str]) {
        *self.readiness.lock().unwrap() = Readiness {
            phase,
            unready: None,
            degraded: degraded.iter().map(|text| (*text).to_owned()).collect(),
        };
    }

    /// From now on the gate's own store is in this trouble.
    pub(crate) fn set_unready(&self, why: &str) {
        self.readiness.lock().unwrap().unready = Some(why.to_owned());
    }

    /// What sending by a person's word comes to from now on; none: it takes forever.
    pub(crate) fn set_sending_now(&self, outcome: Option<Result<SendNow, SendNowError>>) {
        *self.sending_now.lock().unwrap() = outcome;
    }

    /// The records that were to be sent by a person's word.
    pub(crate) fn sent_now(&self) -> Vec<String> {
        let sent = self.sent_now.lock().unwrap();
        sent.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn drained_by(&self) -> Option<String> {
        self.drained_by.lock().unwrap().clone()
    }
}

impl Control for Hand {
    fn readiness(&self) -> Readiness {
        let readiness = self.readiness.lock().unwrap().clone();
        if readiness.phase == Phase::Draining
            && self.looks_until_gone.fetch_sub(1, Ordering::SeqCst) == 1
        {
            self.shutdown.cancel();
        }
        readiness
    }

    fn start_drain(&self, by: &str) {
        *self.drained_by.lock().unwrap() = Some(by.to_owned());
        self.readiness.lock().unwrap().phase = Phase::Draining;
    }

    fn render_metrics(
        &self,
        ledger: Option<&Stats>,
        _: Option<tikigate::outbound::outbox::Stats>,
    ) -> String {
        match ledger {
            Some(stats) => format!("records {:?}\n", stats.records),
            None => "no ledger\n".to_owned(),
        }
    }

    fn send_now(&self, id: RecordId) -> SendingNow {
        self.sent_now.lock().unwrap().push(id);
        match self.sending_now.lock().unwrap().clone() {
            Some(outcome) => Box::pin(std::future::ready(outcome)),
            None => Box::pin(std::future::pending()),
        }
    }
}

/// A running admin listener; stopped when dropped.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    pub(crate) table: Arc<Table>,
    pub(crate) hand: Arc<Hand>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
}

impl Gate {
    pub(crate) fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        Self::on(limits, None)
    }

    /// On a unix socket in the gate's directory.
    pub(crate) fn on_unix_socket() -> Self {
        Self::on(Limits::default(), Some("admin.sock"))
    }

    fn on(limits: Limits, socket: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let shutdown = CancellationToken::new();
        let table = Arc::new(Table::new());
        let hand = Arc::new(Hand {
            readiness: Mutex::new(Readiness {
                phase: Phase::Serving,
                unready: None,
                degraded: Vec::new(),
            }),
            sending_now: Mutex::new(Some(Err(SendNowError::NoRequest))),
            sent_now: Mutex::default(),
            drained_by: Mutex::default(),
            looks_until_gone: AtomicU32::new(3),
            shutdown: shutdown.clone(),
        });
        let tokens = [
            token("ci", "ffffffffffffffffffffffffffffffff"),
            token("ops", TOKEN),
        ];
        let settings = AdminSettings {
            access: Access::new(&tokens, vec!["gate.internal".to_owned()]),
            limits,
        };
        let socket = socket.map(|name| directory.path().join(name));
        let (bound, binding) = mpsc::channel();
        let (ledger, control) = (Arc::clone(&table), Arc::clone(&hand));
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                match socket {
                    None => {
                        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                        bound.send(listener.local_addr().unwrap()).unwrap();
                        admin::serve(listener, settings, ledger, control, stop).await;
                    }
                    Some(path) => {
                        let listener = tokio::net::UnixListener::bind(path).unwrap();
                        bound.send(SocketAddr::from(([0; 4], 0))).unwrap();
                        admin::serve(listener, settings, ledger, control, stop).await;
                    }
                }
            });
        });
        Self {
            address: binding.recv().unwrap(),
            table,
            hand,
            shutdown,
            thread: Some(thread),
            directory,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
    }

    /// One request on a connection of its own. `lines` follow the request line; a `Host` is added
    /// where they bring none.
    pub(crate) fn call(&self, request: &str, lines: &[&str], body: &str) -> Answer {
        let mut text = format!("{request} HTTP/1.1\r\nConnection: close\r\n");
        if !lines.iter().any(|line| line.starts_with("Host:")) {
            text += &format!("Host: {}\r\n", self.address);
        }
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        for line in lines {
            text += line;
            text += "\r\n";
        }
        let mut stream = self.connect();
        stream
            .write_all(format!("{text}\r\n{body}").as_bytes())
            .unwrap();
        Answer::read(&mut stream)
    }

    /// A GET with the token of `ops`.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call(&format!("GET {path}"), &[AUTHORIZATION], "")
    }

    /// A POST of JSON with the token of `ops`.
    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.call(&format!("POST {path}"), &[AUTHORIZATION, JSON], body)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) const AUTHORIZATION: &str = "Authorization: Bearer 0123456789abcdef0123456789abcdef";
pub(crate) const JSON: &str = "Content-Type: application/json";

fn token(name: &str, token: &str) -> AdminToken {
    AdminToken {
        name: name.to_owned(),
        token: Secret::new(token.as_bytes().to_vec()),
    }
}

/// An answer as it came off the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads to the end of the connection.
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Status and code of an error, in the gate's envelope.
    pub(crate) fn error(&self) -> (u16, String) {
        let body = self.json();
        assert!(body["data"].is_null(), "{body}");
        assert!(body["error"]["message"].is_string(), "{body}");
        (
            self.status,
            body["error"]["code"].as_str().unwrap().to_owned(),
        )
    }
}
