//! What a configuration means: every default filled in, every name resolved, every file read.

mod outbound;
mod tracing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method, StatusCode};

pub use outbound::{Account, Confirm, Delivery, Notify, Outbound, Outbox};
pub use tracing::Tracing;

pub use super::tls::{Expiry, ListenerTls, Trust};

use super::Secret;
use crate::net::{AddressRules, ListenAddress, TrustedProxies};
use crate::tiki::{Family, KeySpec, PayloadKind, Pointer, SigningKey, Window};

/// A whole configuration that passed every check.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The inbound listener and its limits.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// Backends; routes name them by index.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What holds for every signature.
    pub signature: Signature,
    /// Callers; routes name them by index.
    pub clients: Vec<Arc<Client>>,
    /// What may be called.
    pub routes: Vec<Arc<Route>>,
    /// Where idempotency records live.
    pub ledger: Ledger,
    /// The partner's own calls to Tiki; none: off.
    pub outbound: Option<Arc<Outbound>>,
    /// Where spans go; none: off.
    pub tracing: Option<Arc<Tracing>>,
    /// The log.
    pub log: Log,
    /// Until when the certificates hold that the configuration names.
    pub certificates: Vec<Expiry>,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct Server {
    /// Where Tiki's calls arrive.
    pub listen: ListenAddress,
    /// Connections open at once; further ones wait in the system's queue.
    pub max_connections: usize,
    /// Requests handled at once; further ones are answered `overloaded`.
    pub max_in_flight: usize,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Bytes a second that a body must come with after its first second; 0: no matter.
    pub min_body_rate: usize,
    /// How long a kept-alive connection may be silent between requests.
    pub idle_timeout: Duration,
    /// How long an answer may make no progress towards the caller.
    pub write_timeout: Duration,
    /// A connection that is older is closed after its next answer, so that callers spread anew.
    pub max_connection_age: Duration,
    /// A head larger than this, in bytes, is refused.
    pub head_limit: usize,
    /// Header fields in a head.
    pub max_headers: usize,
    /// Limit per caller's address, before authentication.
    pub per_address: Rate,
    /// Proxies that are believed about who called them.
    pub trusted_proxies: TrustedProxies,
    /// Whether connections of trusted proxies begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Whose calls are taken.
    pub addresses: AddressRules,
    /// TLS; none: plain HTTP.
    pub tls: Option<ListenerTls>,
    /// Between failing readiness and closing the listener.
    pub drain_delay: Duration,
    /// How long a drain waits for what is in flight.
    pub drain_within: Duration,
    /// Threads that serve, each with its own runtime, listener and backend connections.
    pub workers: usize,
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls a second, sustained; at least 1.
    pub per_second: u32,
    /// Calls at once; at least 1.
    pub burst: u32,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where probes, metrics and the ledger API answer.
    pub listen: ListenAddress,
    /// Who may use the API. Empty: one is made when the gate starts.
    pub tokens: Vec<AdminToken>,
    /// Host names, besides the listen address and loopback, that the API accepts in `Host`.
    pub hosts: Vec<String>,
    /// Whose connections are taken.
    pub addresses: AddressRules,
}

/// One person's or program's way into the admin API.
#[derive(Clone, Debug)]
pub struct AdminToken {
    /// Who acts with it; goes into the ledger's events.
    pub name: String,
    /// The bearer token.
    pub token: Secret,
}

/// `[upstreams.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name in the configuration.
    pub name: String,
    /// Where it listens; at least one. The gate chooses among them.
    pub endpoints: Vec<Endpoint>,
    /// The `Host` that is sent.
    pub host: HeaderValue,
    /// Limit of one connect.
    pub connect_timeout: Duration,
    /// From a request's first byte to the answer that Tiki gets; under 15 s.
    pub answer_within: Duration,
    /// How long a sent call may run on after Tiki was answered.
    pub settle_within: Duration,
    /// Calls running at once, over all workers.
    pub max_in_flight: usize,
    /// Headers added to every call; their values may be secrets.
    pub set_headers: Vec<(HeaderName, Secret)>,
    /// When an address is left alone for a while.
    pub breaker: Breaker,
    /// How addresses are asked whether they are well; none: calls tell.
    pub health: Option<HealthCheck>,
}

/// `[upstreams.NAME.breaker]`: for each address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Off: every call is tried.
    pub enabled: bool,
    /// Opens after so many failures one after the other; at least 1.
    pub failures: u32,
    /// Opens when of the calls within `window` so many of a hundred failed; 1 to 100.
    pub failure_percent: u32,
    /// How many calls there must be within `window` for that.
    pub min_calls: u32,
    /// How far back calls count.
    pub window: Duration,
    /// How long it stays open before one call may try.
    pub open_for: Duration,
}

impl Breaker {
    /// Every call is tried.
    pub const OFF: Self = Self {
        enabled: false,
        failures: 10,
        failure_percent: 50,
        min_calls: 20,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
    };
}

/// `[upstreams.NAME.health]`: a GET at each address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path, and perhaps a query.
    pub path: String,
    /// Between two checks of an address.
    pub every: Duration,
    /// Limit of one check, connecting included.
    pub timeout: Duration,
    /// So many good checks one after the other make it well; at least 1.
    pub healthy_after: u32,
    /// So many bad checks one after the other make it unwell; at least 1.
    pub unhealthy_after: u32,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://host:port`; the name is resolved at each connect.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `https://host:port`; the name is resolved at each connect.
    Tls {
        /// Host name or address, without brackets; the certificate must be its.
        host: String,
        /// Port.
        port: u16,
        /// Whose certificates are believed.
        trust: Trust,
    },
    /// `unix:/path`
    Unix(PathBuf),
}

/// `[signature]`, as far as it is not per route.
#[derive(Clone, Debug)]
pub struct Signature {
    /// Header families that are accepted.
    pub families: Vec<Family>,
    /// The status of `unauthenticated`: 401 or 503.
    pub refuse_with: StatusCode,
    /// How many accepted signatures are remembered at once, over all routes.
    pub max_remembered: usize,
}

/// One of `[[clients]]`
#[derive(Clone, Debug)]
pub struct Client {
    /// The client key that Tiki sends.
    pub id: String,
    /// For logs and metrics.
    pub name: String,
    /// Which of Tiki's systems calls.
    pub environment: Environment,
    /// Goes to the log and to the backend.
    pub partner_code: Option<String>,
    /// The secrets it may sign with, newest first.
    pub secrets: Vec<ClientSecret>,
    /// Limit after authentication.
    pub rate: Rate,
}

/// One secret of a client, ready to verify with.
#[derive(Clone, Debug)]
pub struct ClientSecret {
    /// Its name, for the metric that shows whether it is still used.
    pub name: String,
    /// The keyed state.
    pub key: SigningKey,
    /// Signatures by it count for nothing from this time on.
    pub not_after: Option<SystemTime>,
}

/// Which of Tiki's systems a client belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// Real money.
    Production,
    /// Play money.
    Sandbox,
}

/// One of `[[routes]]`
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in logs and metrics.
    pub name: String,
    /// Matched byte for byte against the request's path.
    pub path: String,
    /// GET, POST, PUT, PATCH or DELETE; only GET signs the path.
    pub method: Method,
    /// What the body must be.
    pub payload: PayloadKind,
    /// Index into [`Settings::upstreams`].
    pub upstream: usize,
    /// Path, and perhaps a fixed query, that the backend gets.
    pub upstream_path: String,
    /// Indexes into [`Settings::clients`] of those who may call.
    pub clients: Vec<usize>,
    /// Whose calls are taken, beside `server.addresses`.
    pub addresses: AddressRules,
    /// Time window per family, in the order of [`Family::ALL`].
    pub windows: [Window; 2],
    /// Body bytes at most.
    pub body_limit: usize,
    /// Who words the answer to a success.
    pub answer: AnswerSource,
    /// Kept answers are at most this many bytes.
    pub answer_limit: usize,
    /// Caller's headers that go to the backend as they are.
    pub forward_headers: Vec<HeaderName>,
    /// Whether the signature headers are kept from the backend.
    pub strip_signature: bool,
    /// GET: how the path on the wire becomes the path that Tiki signed.
    pub signed_path: SignedPath,
    /// What the backend's answers mean.
    pub outcome: OutcomeRules,
    /// Whether Tiki is asked about the transaction before the call is forwarded.
    pub confirm: bool,
    /// How duplicates are told; none: every authentic call is sent.
    pub idempotency: Option<Idempotency>,
}

/// `signed_path = { strip, add }`: the prefix `strip` is taken off, then `add` put in front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignedPath {
    /// Prefix taken off the path on the wire.
    pub strip: String,
    /// Prefix put in front of what is left.
    pub add: String,
}

/// Who words the answer to a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// The backend's own answer is passed back.
    Backend,
    /// The platform's success body.
    Platform,
}

/// How a backend's answer is classified, beside the rules that always hold.
#[derive(Clone, Debug)]
pub struct OutcomeRules {
    /// A 2xx counts as success only if this holds.
    pub success_when: Option<Condition>,
    /// An answer for which this holds says "not applied", whatever its status.
    pub failed_when: Option<Condition>,
    /// Statuses that decline for good.
    pub final_statuses: Vec<StatusCode>,
    /// Statuses that say "not applied, try again".
    pub retry_statuses: Vec<StatusCode>,
}

/// `{ pointer = "/code", equals = 0 }` over a JSON answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Where to look.
    pub pointer: Pointer,
    /// What must stand there.
    pub equals: serde_json::Value,
}

/// `[routes.idempotency]`
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The ledger's namespace of the route's keys.
    pub namespace: String,
    /// Which fields are the key and which move money.
    pub spec: KeySpec,
    /// What happens to a call whose outcome nobody knows.
    pub on_unknown: OnUnknown,
    /// How long records are kept.
    pub keep: Duration,
    /// Authentic calls outside the window are taken up to this age; zero: off.
    pub resend_age: Duration,
    /// What happens to an order's event that is older than one that was passed on. Order IPNs only.
    pub stale_events: StaleEvents,
    /// What happens to a second refund of one payment and amount. Refunds only.
    pub possible_duplicate: PossibleDuplicate,
    /// How recent the first refund must be for that.
    pub duplicate_window: Duration,
    /// How the backend is asked what became of a call that nobody knows of; none: a person is asked.
    pub probe: Option<Probe>,
}

/// What happens to a stale event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleEvents {
    /// Passed on with `X-Tikigate-Stale-Event: true`.
    Mark,
    /// Answered with success and not passed on.
    Drop,
}

/// What happens to a second refund of one payment and amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PossibleDuplicate {
    /// Passed on with `X-Tikigate-Possible-Duplicate: true`.
    Mark,
    /// Held for a person.
    Hold,
}

/// `[routes.idempotency.probe]`: a GET on the route's backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Path, and perhaps a query, in its parts.
    pub path: Vec<ProbePart>,
    /// Limit of one look, connecting included.
    pub timeout: Duration,
    /// Any of these means that the call was applied. Never empty.
    pub applied: Vec<ProbeSign>,
    /// Any of these, and none of the others, means that it was not. May be empty.
    pub not_applied: Vec<ProbeSign>,
}

/// A part of a probe's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbePart {
    /// As it is.
    Text(String),
    /// The message's idempotency key, percent-encoded: `{key}`.
    Key,
    /// A kept field of the message ([`crate::tiki::kept_fields`]), percent-encoded: `{transaction_id}`.
    Field(String),
}

/// What a backend's answer to a probe may look like.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSign {
    /// Its status.
    pub status: StatusCode,
    /// What its JSON says; none: the status is enough.
    pub when: Option<Condition>,
}

/// What happens to a call whose outcome nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnknown {
    /// Held until somebody says what happened.
    Hold,
    /// Sent again when Tiki sends it again.
    Resend,
}

/// `[ledger]`
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Which store.
    pub store: Store,
    /// The time zone of dates in commands.
    pub time_zone: String,
    /// Where a made admin token is put: beside the ledger.
    pub directory: PathBuf,
}

/// Where records live.
#[derive(Clone, Debug)]
pub enum Store {
    /// In this process; lost at its exit.
    Memory {
        /// Records at most.
        max_records: usize,
        /// Bytes of keys and kept answers at most.
        max_bytes: usize,
    },
    /// In a file beside the gate.
    Sqlite(SqliteStore),
    /// In a database that several gates share.
    Postgres(PostgresStore),
}

/// `store = "sqlite"`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteStore {
    /// The database file.
    pub path: PathBuf,
    /// The file that tells whether the database lost something.
    pub watermark: PathBuf,
    /// Refuse to start where there is no database yet.
    pub require_existing: bool,
    /// Hold routes may rest on a file system that forgets or can't lock (tmpfs, overlay, network).
    pub allow_unsafe_filesystem: bool,
    /// Whether any route holds: what the file system must be like depends on it.
    pub holds: bool,
}

/// `store = "postgres"`
#[derive(Clone, Debug)]
pub struct PostgresStore {
    /// `postgres://user:password@host:port/database`
    pub url: Secret,
    /// Certificates that the server's is checked against; none: the system's.
    pub ca: Option<PathBuf>,
    /// Connections at most.
    pub connections: usize,
    /// How long an owner that gives no sign of life keeps its claims. Outlasts every `settle_within`.
    pub lease: Duration,
    /// Refuse to start where the schema is not there yet.
    pub require_existing: bool,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least level that is written.
    pub level: ::tracing::level_filters::LevelFilter,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For eyes.
    Text,
}
