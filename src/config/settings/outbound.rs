//! `[outbound]`: the partner's own calls to Tiki.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::{ListenerTls, Rate, Upstream};
use crate::config::Secret;
use crate::net::{AddressRules, ListenAddress};
use crate::tiki::Family;

/// `[outbound]`
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Where the backend's plain calls arrive.
    pub listen: ListenAddress,
    /// What a caller must show as `Authorization: Bearer`; none: whoever reaches the listener may call.
    pub token: Option<Secret>,
    /// TLS at the listener; none: plain HTTP.
    pub tls: Option<ListenerTls>,
    /// Whose connections are taken.
    pub addresses: AddressRules,
    /// Who the calls are signed as. The first is taken where the caller names none. Never empty.
    pub accounts: Vec<Arc<Account>>,
    /// The paths below a base URL that may be called, each with its slash in front; none: all.
    pub paths: Option<Vec<String>>,
    /// Bytes of a call's body at most.
    pub body_limit: usize,
    /// Bytes of Tiki's answer at most.
    pub answer_limit: usize,
    /// Calls handled at once; further ones are answered `overloaded`.
    pub max_in_flight: usize,
    /// Limit of one call to Tiki, connecting included.
    pub timeout: Duration,
    /// Caller's headers that go to Tiki as they are.
    pub forward_headers: Vec<HeaderName>,
    /// What becomes of a `POST /payment/ipn`.
    pub delivery: Delivery,
    /// How IPNs are delivered from the outbox.
    pub outbox: Outbox,
    /// How Tiki is asked before an inbound IPN is forwarded (`routes.confirm`).
    pub confirm: Confirm,
}

/// One of `[[outbound.accounts]]`
#[derive(Clone, Debug)]
pub struct Account {
    /// Index into [`super::Settings::clients`]: its id and newest secret sign.
    pub client: usize,
    /// The signature headers that Tiki expects.
    pub family: Family,
    /// The base URL as it was written, without a slash at its end: what a delivery is pinned to.
    pub base_url: String,
    /// The path of the base URL, without a slash at its end; empty for the root.
    pub base_path: String,
    /// The way to Tiki.
    pub upstream: Arc<Upstream>,
}

/// What becomes of a `POST /payment/ipn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is stored, answered 202, and delivered until Tiki has it.
    Outbox,
    /// It is passed on, and Tiki's answer passed back.
    Direct,
}

/// How IPNs are delivered.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// After the first try without a clear answer; it doubles from try to try.
    pub retry_after: Duration,
    /// The longest pause between two tries.
    pub longest_pause: Duration,
    /// How long after it was accepted a delivery is left to a person.
    pub give_up_after: Duration,
    /// Bytes that deliveries take in the store at most, done ones included.
    pub max_bytes: usize,
    /// How long deliveries that are over are kept, so that a second posting is told from a new one.
    pub keep: Duration,
    /// Deliveries that are at Tiki at once.
    pub max_deliveries: usize,
    /// Calls to Tiki a second.
    pub rate: Rate,
    /// Who is told of deliveries that failed for good.
    pub notify: Option<Notify>,
}

/// `outbound.notify_url`
#[derive(Clone, Debug)]
pub struct Notify {
    /// The way there.
    pub upstream: Arc<Upstream>,
    /// Path and query.
    pub path: String,
    /// As it was written.
    pub url: String,
}

/// How Tiki is asked for the sake of `routes.confirm`.
#[derive(Clone, Debug)]
pub struct Confirm {
    /// Limit of one question, waiting for another one's answer included; at most 4 s.
    pub within: Duration,
    /// Questions a second.
    pub rate: Rate,
}
