//! What the admin listener answers: bodies, faults, and the only place with their statuses.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::view;
use crate::ledger::{Record, State};
use crate::outbound::outbox::WordFault;

/// A whole answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Why a request was refused. Closed: [`Fault::status`] and [`Fault::code`] are its table.
#[derive(Debug)]
pub(super) enum Fault {
    /// No token, or none of ours.
    Unauthorized,
    /// `Host` is not a name of this listener: a name that was made to resolve to it, perhaps.
    ForbiddenHost,
    /// A browser sent it from a page.
    ForbiddenOrigin,
    /// No such path.
    NotFound,
    /// No such record.
    NoSuchRecord,
    /// The path is right, the method isn't; these are.
    MethodNotAllowed(&'static str),
    /// Changes are JSON.
    UnsupportedMediaType,
    /// The body is larger than allowed.
    BodyTooLarge,
    /// The body took too long.
    BodyTimeout,
    /// The request can't be understood; the sentence says where.
    Malformed(String),
    /// A resolution without a reason.
    ReasonRequired,
    /// The record is not what the caller saw; this is what it is.
    Conflict(Box<Record>),
    /// "Not applied" while the attempt may still run.
    MayStillRun(SystemTime),
    /// Only unknown records are resolved.
    NotUnknown(State),
    /// The record raised an alarm and is never released again.
    NoFurtherRelease,
    /// Only somebody's word is taken back; this is the backend's answer, or nobody's word.
    NotDeclared,
    /// The record was never sent: a look at the backend says nothing of it.
    NeverSent,
    /// There is no quarantine to lift.
    NotQuarantined,
    /// The quarantine is not the one that the caller saw; this is its cause.
    OtherQuarantine(String),
    /// There is no outbox: the configuration wants none.
    NoOutbox,
    /// No such delivery.
    NoSuchDelivery,
    /// A word on a delivery that can't be taken.
    DeliveryRefused(WordFault),
    /// The ledger failed or didn't answer in time.
    LedgerUnavailable,
}

impl Fault {
    fn status(&self) -> StatusCode {
        match self {
            Fault::Malformed(_) => StatusCode::BAD_REQUEST,
            Fault::Unauthorized => StatusCode::UNAUTHORIZED,
            Fault::ForbiddenOrigin => StatusCode::FORBIDDEN,
            Fault::NotFound | Fault::NoSuchRecord | Fault::NoSuchDelivery | Fault::NoOutbox => {
                StatusCode::NOT_FOUND
            }
            Fault::DeliveryRefused(WordFault::Unattributed) => StatusCode::UNPROCESSABLE_ENTITY,
            Fault::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Fault::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Fault::Conflict(_)
            | Fault::MayStillRun(_)
            | Fault::NotUnknown(_)
            | Fault::NoFurtherRelease
            | Fault::NotDeclared
            | Fault::NeverSent
            | Fault::NotQuarantined
            | Fault::DeliveryRefused(_)
            | Fault::OtherQuarantine(_) => StatusCode::CONFLICT,
            Fault::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Fault::ForbiddenHost => StatusCode::MISDIRECTED_REQUEST,
            Fault::ReasonRequired => StatusCode::UNPROCESSABLE_ENTITY,
            Fault::LedgerUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Fault::Unauthorized => "unauthorized",
            Fault::ForbiddenHost => "forbidden_host",
            Fault::ForbiddenOrigin => "forbidden_origin",
            Fault::NotFound | Fault::NoSuchRecord | Fault::NoSuchDelivery => "not_found",
            Fault::NoOutbox => "no_outbox",
            Fault::DeliveryRefused(fault) => match fault {
                WordFault::InFlight => "in_flight",
                WordFault::Over(_) => "over",
                WordFault::Overtaken => "overtaken",
                WordFault::Unattributed => "reason_required",
                WordFault::NotFound => "not_found",
                WordFault::Store(_) => "ledger_unavailable",
            },
            Fault::MethodNotAllowed(_) => "method_not_allowed",
            Fault::UnsupportedMediaType => "unsupported_media_type",
            Fault::BodyTooLarge => "body_too_large",
            Fault::BodyTimeout => "body_timeout",
            Fault::Malformed(_) => "malformed",
            Fault::ReasonRequired => "reason_required",
            Fault::Conflict(_) | Fault::OtherQuarantine(_) => "conflict",
            Fault::MayStillRun(_) => "may_still_run",
            Fault::NotUnknown(_) => "not_unknown",
            Fault::NoFurtherRelease => "no_further_release",
            Fault::NotDeclared => "not_declared",
            Fault::NeverSent => "never_sent",
            Fault::NotQuarantined => "not_quarantined",
            Fault::LedgerUnavailable => "ledger_unavailable",
        }
    }

    fn message(&self) -> String {
        match self {
            Fault::Unauthorized => "a valid bearer token is required".to_owned(),
            Fault::ForbiddenHost => {
                "the Host is not a name of this listener; `admin.hosts` adds names".to_owned()
            }
            Fault::ForbiddenOrigin => "requests of web pages are refused".to_owned(),
            Fault::NotFound => "there is nothing at this path".to_owned(),
            Fault::NoSuchRecord => "there is no such record".to_owned(),
            Fault::NoSuchDelivery => "there is no such delivery".to_owned(),
            Fault::NoOutbox => {
                "there is no outbox: [outbound] is left out, or its delivery is direct".to_owned()
            }
            Fault::DeliveryRefused(fault) => fault.to_string(),
            Fault::MethodNotAllowed(allowed) => format!("this path takes {allowed}"),
            Fault::UnsupportedMediaType => "the Content-Type must be application/json".to_owned(),
            Fault::BodyTooLarge => "the body is too large".to_owned(),
            Fault::BodyTimeout => "the body took too long".to_owned(),
            Fault::Malformed(what) => what.clone(),
            Fault::ReasonRequired => "a reason is required".to_owned(),
            Fault::Conflict(record) => format!(
                "the record has changed: it is now {} (attempt {}, version {})",
                record.state.as_str(),
                record.attempt,
                record.version
            ),
            Fault::MayStillRun(_) => "the attempt may still be running".to_owned(),
            Fault::NotUnknown(state) => format!(
                "only an unknown record can be resolved; this one is {}",
                state.as_str()
            ),
            Fault::NoFurtherRelease => {
                "an earlier attempt succeeded after it was declared not applied: \
                 the record can't be released"
                    .to_owned()
            }
            Fault::NotDeclared => {
                "this record does not rest on somebody's word, which alone can be taken back"
                    .to_owned()
            }
            Fault::NeverSent => {
                "this record was never sent: a look at the backend says nothing of it".to_owned()
            }
            Fault::NotQuarantined => "the ledger is not in quarantine".to_owned(),
            Fault::OtherQuarantine(cause) => {
                format!("the quarantine is not the one that was seen; its cause is now: {cause}")
            }
            Fault::LedgerUnavailable => {
                "the ledger is unavailable; look again before you decide what it did".to_owned()
            }
        }
    }

    /// What a program needs beside the code.
    fn detail(&self) -> Option<(&'static str, Value)> {
        match self {
            Fault::Conflict(record) => Some(("record", view::summary(record))),
            Fault::MayStillRun(until) => Some(("until", view::time(*until))),
            Fault::NotUnknown(state) => Some(("state", Value::from(state.as_str()))),
            Fault::OtherQuarantine(cause) => Some(("cause", Value::from(cause.as_str()))),
            _ => None,
        }
    }

    /// The answer: the same envelope as the gate's own.
    pub(super) fn into_answer(self) -> Answer {
        let mut error = json!({ "code": self.code(), "message": self.message() });
        if let Some((name, value)) = self.detail() {
            error[name] = value;
        }
        let body = json!({ "data": null, "error": error });
        let mut answer = with_body(self.status(), "application/json", body.to_string());
        match self {
            Fault::Unauthorized => insert(&mut answer, WWW_AUTHENTICATE, "Bearer"),
            Fault::MethodNotAllowed(allowed) => insert(&mut answer, ALLOW, allowed),
            _ => {}
        }
        answer
    }
}

/// `{"data": …}` with 200.
pub(super) fn data(data: Value) -> Answer {
    json_body(StatusCode::OK, &json!({ "data": data }))
}

/// A JSON body as it is.
pub(super) fn json_body(status: StatusCode, body: &Value) -> Answer {
    with_body(status, "application/json", body.to_string())
}

/// Text of the given content type.
pub(super) fn with_body(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    insert(&mut answer, CONTENT_TYPE, content_type);
    insert(&mut answer, CACHE_CONTROL, "no-store");
    insert(
        &mut answer,
        HeaderName::from_static("x-content-type-options"),
        "nosniff",
    );
    answer
}

fn insert(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
}
