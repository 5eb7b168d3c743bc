//! Why a call is not answered with a backend's answer: a closed list, and the only place with statuses.
//!
//! **The rule:** trouble that may pass is answered 5xx, because Tiki sends again only on 5xx, on
//! silence and on a broken connection; trouble that won't pass is answered 4xx, which Tiki never
//! sends again. A passing trouble that is answered 4xx is a lost payment notice, which is why rate
//! limits are 503 here and not 429.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::ledger::Hold;
use crate::outbound::confirm::Doubt;
use crate::tiki::{self, HeaderFault, PayloadFault};

/// Why a call was refused. [`Refusal::code`] is the stable word that the caller sees;
/// [`Refusal::reason`] is the finer one for log and metrics only.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// No route has this path.
    NotFound,
    /// A route has this path, with another method; what it allows.
    MethodNotAllowed(String),
    /// The request's head is ambiguous or not what a proxy may pass on.
    MalformedRequest(RequestFault),
    /// Any fault of the signature. Callers get one answer for all.
    Unauthenticated(AuthFault),
    /// Authentic, outside the time window, and nothing is known of it.
    OutOfWindow(Dated),
    /// The signature was used before: on another route, or here and it got its final answer.
    Replayed(Reuse),
    /// Over the route's limit.
    BodyTooLarge,
    /// A `Content-Encoding` other than identity: the signature is over the decoded bytes or not, who knows.
    UnsupportedEncoding,
    /// Signed, but not the route's payload.
    InvalidPayload(PayloadFault),
    /// The idempotency key was used with other money fields.
    Conflict,
    /// A rate limit; when it will let the next call through.
    RateLimited(Limit, Duration),
    /// Too much is running.
    Overloaded(Overload),
    /// A duplicate of a call that has not settled.
    InProgress(Wait),
    /// Tiki says something else of the transaction than the IPN does.
    Unconfirmed,
    /// Tiki does not say, yet, that it stands by the IPN.
    NotConfirmed(Doubt),
    /// Nobody knows what became of an earlier attempt, so the key is held.
    OutcomeUnknown(Hold),
    /// Certain that nothing was sent to the backend.
    UpstreamUnreachable(&'static str),
    /// The backend may not be called now; when it may be tried again.
    UpstreamUnavailable(Unavailable, Duration),
    /// Sent; no whole answer by the deadline.
    UpstreamTimeout,
    /// Sent; an answer that can't be passed on, or none.
    UpstreamFailed(UpstreamFault),
    /// The ledger can't take the call: nothing is forwarded on a guess.
    LedgerUnavailable(LedgerFault),
    /// The caller's address is not let in.
    AddressNotAllowed,
    /// The gate is about to stop.
    Draining,
    /// The caller was too slow with its body, or broke it off.
    BodyTimeout(BodyFault),
}

/// A list of words that has a slot for each, for metrics.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident => $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// The stable word for it in log and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            const WORDS: &'static [&'static str] = &[$($word,)+];
        }
    };
}

words! {
    /// What is wrong with a request's head.
    RequestFault {
        /// No `Host`, or more than one.
        Host => "host",
        /// The target is not a plain path.
        Target => "target",
        /// `Transfer-Encoding` is not one exact `chunked`, or more than one length is given.
        Framing => "framing",
        /// A body on a method that signs the path.
        UnexpectedBody => "unexpected_body",
        /// `Upgrade` or another protocol.
        Protocol => "protocol",
    }
}

words! {
    /// Why a call is not authentic.
    AuthFault {
        /// One of the three headers is missing.
        MissingHeader => "missing_header",
        /// One of the three occurs twice.
        DuplicateHeader => "duplicate_header",
        /// Headers of both families.
        MixedFamilies => "mixed_families",
        /// The family is switched off.
        FamilyDisabled => "family_disabled",
        /// Nobody is configured with this client id.
        UnknownClient => "unknown_client",
        /// The client may not call this route.
        ClientNotAllowed => "client_not_allowed",
        /// Not 13 digits.
        BadTimestamp => "bad_timestamp",
        /// Not 64 lower-case hex digits, or not the right ones.
        BadSignature => "bad_signature",
    }
}

words! {
    /// On which side of the window a call lies.
    Dated {
        /// Older than `max_age`.
        TooOld => "too_old",
        /// Further ahead than `max_ahead`.
        TooFarAhead => "too_far_ahead",
    }
}

words! {
    /// How a signature was used before.
    Reuse {
        /// Another route accepted it.
        OtherRoute => "other_route",
        /// This route gave it a final answer.
        Answered => "answered",
    }
}

words! {
    /// Whose rate limit.
    Limit {
        /// The caller's address.
        Address => "address",
        /// The client.
        Client => "client",
    }
}

words! {
    /// What there is too much of.
    Overload {
        /// `server.max_in_flight`
        InFlight => "in_flight",
        /// One address's share of it.
        AddressShare => "address_share",
        /// One client's share of it.
        ClientShare => "client_share",
        /// The upstream's `max_in_flight`, for as long as Tiki waits.
        Upstream => "upstream",
        /// `signature.max_remembered`
        Signatures => "signatures",
    }
}

words! {
    /// What a duplicate waits for.
    Wait {
        /// The running call did not settle by the deadline.
        Deadline => "deadline",
        /// Too many duplicates wait already.
        Crowded => "crowded",
        /// Another process runs it.
        Elsewhere => "elsewhere",
    }
}

words! {
    /// Why no address of a backend may be called.
    Unavailable {
        /// Too many calls failed lately.
        BreakerOpen => "breaker_open",
        /// Its checks say that it is unwell.
        Unhealthy => "unhealthy",
    }
}

words! {
    /// What kept a sent call from a whole, usable answer.
    UpstreamFault {
        /// The connection was reset.
        Reset => "upstream_reset",
        /// The connection was closed without an answer.
        Closed => "upstream_closed",
        /// An answer was cut off.
        Incomplete => "upstream_incomplete",
        /// An answer that is not HTTP, or a 101.
        Protocol => "upstream_protocol",
        /// An answer that says "not applied", with a status below 500.
        NotApplied => "not_applied",
        /// An answer that says neither yes nor no, with a status below 500.
        Unclear => "unclear",
        /// The gate stopped while the call ran.
        Abandoned => "abandoned",
    }
}

words! {
    /// Why the ledger can't take a call.
    LedgerFault {
        /// It failed.
        Failed => "failed",
        /// It is full of records that still hold.
        Full => "full",
        /// The backend answered, and the answer is not recorded yet.
        Unrecorded => "unrecorded",
        /// The claim was taken away before anything was sent.
        Fenced => "fenced",
    }
}

words! {
    /// How a body failed to arrive.
    BodyFault {
        /// Too slow.
        TooSlow => "too_slow",
        /// Waited for longer than others when all places were taken.
        GivenUp => "given_up",
        /// Broken off, or its framing is broken.
        BrokenOff => "broken_off",
    }
}

/// Stable words of a connection that could not be used, for [`Refusal::UpstreamUnreachable`].
const UNREACHABLE: &[&str] = &[
    "connect_refused",
    "connect_timeout",
    "connect_failed",
    "connect_unresolved",
    "connect_tls",
    "not_sent",
];

/// One row of the table: the code, its status, the sentence for the caller.
struct Row {
    code: &'static str,
    status: u16,
    message: &'static str,
    reasons: &'static [&'static str],
}

const HOLDS: &[&str] = &[
    Hold::ALL[0].as_str(),
    Hold::ALL[1].as_str(),
    Hold::ALL[2].as_str(),
];
const NONE: &[&str] = &[""];

/// The table of answers. [`Refusal::row`] gives each refusal its row.
#[rustfmt::skip] // one row a line, as in any table
const TABLE: &[Row] = &[
    Row { code: "not_found", status: 404, message: "there is no such route", reasons: NONE },
    Row { code: "method_not_allowed", status: 405, message: "the route does not take this method", reasons: NONE },
    Row { code: "malformed_request", status: 400, message: "the request's head can't be passed on", reasons: RequestFault::WORDS },
    Row { code: "unauthenticated", status: 401, message: "the call is not authenticated", reasons: AuthFault::WORDS },
    Row { code: "out_of_window", status: 503, message: "the call's timestamp is outside the accepted time window", reasons: Dated::WORDS },
    Row { code: "replayed", status: 409, message: "the signature was used before", reasons: Reuse::WORDS },
    Row { code: "body_too_large", status: 413, message: "the body is larger than the route allows", reasons: NONE },
    Row { code: "unsupported_encoding", status: 415, message: "the body must not be encoded", reasons: NONE },
    Row { code: "malformed_body", status: 400, message: "the body is not valid JSON", reasons: NONE },
    Row { code: "invalid_field", status: 422, message: "a field is not valid", reasons: NONE },
    Row { code: "conflict", status: 422, message: "the idempotency key was used with other money fields", reasons: NONE },
    Row { code: "rate_limited", status: 503, message: "too many calls, send again later", reasons: Limit::WORDS },
    Row { code: "overloaded", status: 503, message: "too much is running, send again later", reasons: Overload::WORDS },
    Row { code: "in_progress", status: 503, message: "the same call is being processed, send again later", reasons: Wait::WORDS },
    Row { code: "outcome_unknown", status: 500, message: "the outcome of an earlier attempt is being clarified, send again later", reasons: HOLDS },
    Row { code: "upstream_unreachable", status: 502, message: "the service can't be reached, send again later", reasons: UNREACHABLE },
    Row { code: "upstream_timeout", status: 504, message: "the service did not answer in time, send again later", reasons: NONE },
    Row { code: "upstream_failed", status: 502, message: "the service gave no usable answer, send again later", reasons: UpstreamFault::WORDS },
    Row { code: "ledger_unavailable", status: 503, message: "the call can't be recorded now, send again later", reasons: LedgerFault::WORDS },
    Row { code: "draining", status: 503, message: "the service is restarting, send again later", reasons: NONE },
    Row { code: "body_timeout", status: 503, message: "the body did not arrive in time, send again later", reasons: BodyFault::WORDS },
    Row { code: "unconfirmed", status: 422, message: "the transaction's status says otherwise", reasons: NONE },
    Row { code: "not_confirmed", status: 503, message: "the transaction's status does not confirm it yet, send again later", reasons: Doubt::WORDS },
    Row { code: "address_not_allowed", status: 503, message: "calls from this address are not taken", reasons: NONE },
    Row { code: "upstream_unavailable", status: 503, message: "the service fails or is down, and nothing was sent: send again later", reasons: Unavailable::WORDS },
];

impl Refusal {
    fn row(&self) -> usize {
        match self {
            Self::NotFound => 0,
            Self::MethodNotAllowed(_) => 1,
            Self::MalformedRequest(_) => 2,
            Self::Unauthenticated(_) => 3,
            Self::OutOfWindow(_) => 4,
            Self::Replayed(_) => 5,
            Self::BodyTooLarge => 6,
            Self::UnsupportedEncoding => 7,
            Self::InvalidPayload(PayloadFault::Malformed { .. }) => 8,
            Self::InvalidPayload(PayloadFault::Field { .. }) => 9,
            Self::Conflict => 10,
            Self::RateLimited(..) => 11,
            Self::Overloaded(_) => 12,
            Self::InProgress(_) => 13,
            Self::OutcomeUnknown(_) => 14,
            Self::UpstreamUnreachable(_) => 15,
            Self::UpstreamTimeout => 16,
            Self::UpstreamFailed(_) => 17,
            Self::LedgerUnavailable(_) => 18,
            Self::Draining => 19,
            Self::BodyTimeout(_) => 20,
            Self::Unconfirmed => 21,
            Self::NotConfirmed(_) => 22,
            Self::AddressNotAllowed => 23,
            Self::UpstreamUnavailable(..) => 24,
        }
    }

    /// The stable word that the caller sees.
    pub fn code(&self) -> &'static str {
        TABLE[self.row()].code
    }

    /// The finer word for log and metrics; empty where the code says it all.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MalformedRequest(fault) => fault.as_str(),
            Self::Unauthenticated(fault) => fault.as_str(),
            Self::OutOfWindow(side) => side.as_str(),
            Self::Replayed(reuse) => reuse.as_str(),
            Self::RateLimited(limit, _) => limit.as_str(),
            Self::Overloaded(overload) => overload.as_str(),
            Self::InProgress(wait) => wait.as_str(),
            Self::OutcomeUnknown(hold) => hold.as_str(),
            Self::UpstreamUnreachable(word) => word,
            Self::UpstreamUnavailable(why, _) => why.as_str(),
            Self::UpstreamFailed(fault) => fault.as_str(),
            Self::LedgerUnavailable(fault) => fault.as_str(),
            Self::BodyTimeout(fault) => fault.as_str(),
            Self::NotConfirmed(doubt) => doubt.as_str(),
            Self::NotFound
            | Self::MethodNotAllowed(_)
            | Self::BodyTooLarge
            | Self::UnsupportedEncoding
            | Self::InvalidPayload(_)
            | Self::Conflict
            | Self::UpstreamTimeout
            | Self::Unconfirmed
            | Self::AddressNotAllowed
            | Self::Draining => "",
        }
    }

    /// The status; `refuse_with` is what the configuration wants for unauthenticated calls.
    pub fn status(&self, refuse_with: StatusCode) -> StatusCode {
        if matches!(self, Self::Unauthenticated(_)) {
            return refuse_with;
        }
        StatusCode::from_u16(TABLE[self.row()].status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The sentence for the caller. Only a payload's fault names more than its code says: the field.
    pub fn message(&self) -> String {
        match self {
            Self::InvalidPayload(fault) => fault.to_string(),
            _ => TABLE[self.row()].message.to_owned(),
        }
    }

    /// The platform's envelope with code and message. But for one that names a field it is made once, and
    /// whoever is refused a lot costs nothing here.
    pub fn body(&self) -> Bytes {
        static MADE: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
            let made = |row: &Row| &*tiki::error_body(row.code, row.message).leak();
            TABLE.iter().map(made).collect()
        });
        match self {
            Self::InvalidPayload(_) => tiki::error_body(self.code(), &self.message()).into(),
            _ => Bytes::from_static(MADE[self.row()].as_bytes()),
        }
    }

    /// When the caller may try again, in whole seconds, for the 503s.
    pub fn retry_after(&self, status: StatusCode) -> Option<u64> {
        match self {
            Self::RateLimited(_, wait) | Self::UpstreamUnavailable(_, wait) => {
                Some(wait.as_secs_f64().ceil().max(1.0) as u64)
            }
            _ if status == StatusCode::SERVICE_UNAVAILABLE => Some(1),
            _ => None,
        }
    }

    /// Whether the connection must be closed: what comes next on it can't be trusted to be a request.
    pub fn closes_connection(&self) -> bool {
        matches!(
            self,
            Self::MalformedRequest(_) | Self::BodyTimeout(_) | Self::BodyTooLarge | Self::Draining
        )
    }

    /// This refusal's place among [`Refusal::labels`].
    pub fn slot(&self) -> usize {
        let row = self.row();
        let before: usize = TABLE[..row].iter().map(|row| row.reasons.len()).sum();
        let reason = self.reason();
        let within = TABLE[row].reasons.iter().position(|word| *word == reason);
        before + within.unwrap_or(0)
    }

    /// Every pair of code and reason, for metrics.
    pub fn labels() -> Vec<(&'static str, &'static str)> {
        TABLE
            .iter()
            .flat_map(|row| row.reasons.iter().map(|reason| (row.code, *reason)))
            .collect()
    }
}

impl From<HeaderFault> for AuthFault {
    fn from(fault: HeaderFault) -> Self {
        match fault {
            HeaderFault::MissingHeader => Self::MissingHeader,
            HeaderFault::DuplicateHeader => Self::DuplicateHeader,
            HeaderFault::MixedFamilies => Self::MixedFamilies,
            HeaderFault::FamilyDisabled => Self::FamilyDisabled,
            HeaderFault::UnknownClient => Self::UnknownClient,
            HeaderFault::BadTimestamp => Self::BadTimestamp,
            HeaderFault::BadSignature => Self::BadSignature,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_body_of_its_own_words() {
        for refusal in one_of_each() {
            let expected = tiki::error_body(refusal.code(), &refusal.message());
            assert_eq!(refusal.body(), expected);
        }
    }

    fn one_of_each() -> Vec<Refusal> {
        vec![
            Refusal::NotFound,
            Refusal::MethodNotAllowed("POST".into()),
            Refusal::MalformedRequest(RequestFault::Host),
            Refusal::Unauthenticated(AuthFault::BadSignature),
            Refusal::OutOfWindow(Dated::TooOld),
            Refusal::Replayed(Reuse::Answered),
            Refusal::BodyTooLarge,
            Refusal::UnsupportedEncoding,
            Refusal::Conflict,
            Refusal::RateLimited(Limit::Client, Duration::from_millis(1500)),
            Refusal::Overloaded(Overload::Upstream),
            Refusal::InProgress(Wait::Deadline),
            Refusal::OutcomeUnknown(Hold::LedgerGap),
            Refusal::OutcomeUnknown(Hold::PossibleDuplicate),
            Refusal::UpstreamUnreachable("connect_refused"),
            Refusal::UpstreamUnreachable("connect_tls"),
            Refusal::UpstreamUnavailable(Unavailable::Unhealthy, Duration::from_secs(3)),
            Refusal::UpstreamTimeout,
            Refusal::UpstreamFailed(UpstreamFault::Reset),
            Refusal::LedgerUnavailable(LedgerFault::Full),
            Refusal::Draining,
            Refusal::BodyTimeout(BodyFault::TooSlow),
            Refusal::Unconfirmed,
            Refusal::NotConfirmed(Doubt::Crowded),
            Refusal::AddressNotAllowed,
        ]
    }

    #[test]
    fn passing_trouble_is_5xx_and_lasting_trouble_4xx() {
        let passing = [
            "out_of_window",
            "rate_limited",
            "overloaded",
            "in_progress",
            "outcome_unknown",
            "upstream_unreachable",
            "upstream_unavailable",
            "upstream_timeout",
            "upstream_failed",
            "ledger_unavailable",
            "draining",
            "body_timeout",
            "not_confirmed",
            // An address is missing in a list of ours as easily as it is rightly kept out.
            "address_not_allowed",
        ];
        for row in TABLE {
            assert_eq!(
                row.status >= 500,
                passing.contains(&row.code),
                "{}",
                row.code
            );
        }
    }

    #[test]
    fn every_slot_is_labelled_with_its_own_words() {
        let labels = Refusal::labels();
        for refusal in one_of_each() {
            assert_eq!(
                labels[refusal.slot()],
                (refusal.code(), refusal.reason()),
                "{refusal:?}"
            );
        }
        let mut unique = labels.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), labels.len());
    }

    #[test]
    fn refuse_with_changes_unauthenticated_alone() {
        for refusal in one_of_each() {
            let usual = refusal.status(StatusCode::UNAUTHORIZED);
            let soft = refusal.status(StatusCode::SERVICE_UNAVAILABLE);
            let differs = matches!(refusal, Refusal::Unauthenticated(_));
            assert_eq!(usual != soft, differs, "{refusal:?}");
        }
    }

    #[test]
    fn a_503_says_when_to_come_back() {
        let limited = Refusal::RateLimited(Limit::Address, Duration::from_millis(1500));
        assert_eq!(
            limited.retry_after(StatusCode::SERVICE_UNAVAILABLE),
            Some(2)
        );
        let open =
            Refusal::UpstreamUnavailable(Unavailable::BreakerOpen, Duration::from_millis(4200));
        assert_eq!(open.retry_after(StatusCode::SERVICE_UNAVAILABLE), Some(5));
        assert_eq!(
            Refusal::Draining.retry_after(StatusCode::SERVICE_UNAVAILABLE),
            Some(1)
        );
        assert_eq!(
            Refusal::Conflict.retry_after(StatusCode::UNPROCESSABLE_ENTITY),
            None
        );
    }
}
