//! Why a backend's call was not passed on, or got no answer of Tiki: a closed list, and the only place
//! with statuses of this direction.

use std::time::Duration;

use http::StatusCode;

use crate::tiki::PayloadFault;

/// Why a backend's call ended here. The caller is the partner's own program, so that the message may
/// say what is wrong with the call.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The path is not among `outbound.paths`.
    NotFound,
    /// Neither GET nor POST, or not the call's.
    MethodNotAllowed(&'static str),
    /// The token is missing or another.
    Unauthenticated,
    /// `X-Tikigate-Client-Id` names no account.
    UnknownClient,
    /// The target can't go out as it is: raw bytes, dot segments, a query where none may be.
    BadTarget(&'static str),
    /// The head is one that two readers could understand differently.
    MalformedRequest(&'static str),
    /// A `Content-Type` or `Content-Encoding` that isn't the call's.
    UnsupportedMediaType(&'static str),
    /// Over `outbound.body_limit`.
    BodyTooLarge,
    /// The body did not arrive whole in its time.
    BodyTimeout,
    /// The body is not the call's.
    InvalidPayload(PayloadFault),
    /// The same transaction with another amount, or an earlier state after a final one; says which.
    Conflict(String),
    /// Too many calls at once.
    Overloaded,
    /// The outbox is as large as it may be.
    OutboxFull,
    /// The store can't take the notice.
    LedgerUnavailable,
    /// Nothing was sent; why.
    Unreachable(&'static str),
    /// Sent, no whole answer in time.
    Timeout,
    /// Sent, no usable answer; why.
    Failed(&'static str),
}

/// When a caller that was told to come again should.
const COME_AGAIN: Duration = Duration::from_secs(1);
/// The same where something has to happen first.
const COME_LATER: Duration = Duration::from_secs(10);

impl Refusal {
    /// The stable word for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::Unauthenticated => "unauthenticated",
            Self::UnknownClient => "unknown_client",
            Self::BadTarget(_) => "bad_target",
            Self::MalformedRequest(_) => "malformed_request",
            Self::UnsupportedMediaType(_) => "unsupported_media_type",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::InvalidPayload(PayloadFault::Malformed { .. }) => "malformed_body",
            Self::InvalidPayload(PayloadFault::Field { .. }) => "invalid_field",
            Self::Conflict(_) => "conflict",
            Self::Overloaded => "overloaded",
            Self::OutboxFull => "outbox_full",
            Self::LedgerUnavailable => "ledger_unavailable",
            Self::Unreachable(_) => "upstream_unreachable",
            Self::Timeout => "upstream_timeout",
            Self::Failed(_) => "upstream_failed",
        }
    }

    /// Its HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::UnknownClient => StatusCode::FORBIDDEN,
            Self::BadTarget(_) | Self::MalformedRequest(_) | Self::InvalidPayload(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Overloaded | Self::OutboxFull | Self::LedgerUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Unreachable(_) | Self::Failed(_) => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// A sentence for the backend's developer.
    pub fn message(&self) -> String {
        match self {
            Self::NotFound => "this path is not among outbound.paths".to_owned(),
            Self::MethodNotAllowed(allowed) => format!("this path takes {allowed}"),
            Self::Unauthenticated => {
                "show the token of outbound.token: Authorization: Bearer ...".to_owned()
            }
            Self::UnknownClient => {
                "X-Tikigate-Client-Id names no client of [[outbound.accounts]]".to_owned()
            }
            Self::BadTarget(what)
            | Self::MalformedRequest(what)
            | Self::UnsupportedMediaType(what) => (*what).to_owned(),
            Self::BodyTooLarge => "the body is over outbound.body_limit".to_owned(),
            Self::BodyTimeout => "the body did not arrive in time".to_owned(),
            Self::InvalidPayload(fault) => fault.to_string(),
            Self::Conflict(what) => what.clone(),
            Self::Overloaded => "too many calls at once; try again".to_owned(),
            Self::OutboxFull => {
                "the outbox is full (outbound.max_bytes): nothing was stored, try again".to_owned()
            }
            Self::LedgerUnavailable => "nothing could be stored; try again".to_owned(),
            Self::Unreachable(reason) => {
                format!("Tiki can't be reached ({reason}): nothing was sent")
            }
            Self::Timeout => "no answer from Tiki in time: it may have taken the call".to_owned(),
            Self::Failed(reason) => {
                format!("no usable answer from Tiki ({reason}): it may have taken the call")
            }
        }
    }

    /// When the caller should come again, where that helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded | Self::LedgerUnavailable => Some(COME_AGAIN),
            Self::OutboxFull => Some(COME_LATER),
            _ => None,
        }
    }
}
