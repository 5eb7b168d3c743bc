//! What the messages must say (docs/protocol.md, "Bodies"). Fields that nobody listed pass.

use std::borrow::Cow;
use std::fmt;

use super::amount::Decimal;
use super::json::{self, JsonError, Shown, Value};

/// A message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadKind {
    /// A payment's state changed (Tiki VIP).
    TransactionIpn,
    /// An order's state changed (Tini App).
    OrderIpn,
    /// Money goes back.
    Refund,
    /// Anything signed.
    Any,
}

impl PayloadKind {
    /// Every kind.
    pub const ALL: [PayloadKind; 4] = [
        PayloadKind::TransactionIpn,
        PayloadKind::OrderIpn,
        PayloadKind::Refund,
        PayloadKind::Any,
    ];

    /// The word for it in the configuration, and the default name of its keys' namespace.
    pub fn as_str(self) -> &'static str {
        match self {
            PayloadKind::TransactionIpn => "transaction_ipn",
            PayloadKind::OrderIpn => "order_ipn",
            PayloadKind::Refund => "refund",
            PayloadKind::Any => "any",
        }
    }

    /// The kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for PayloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A body that was read strictly and is what its kind says. Borrows from the body.
#[derive(Clone)]
pub struct Message<'b> {
    content: Content<'b>,
    document: Value<'b>,
}

impl<'b> Message<'b> {
    /// What it was read as.
    pub fn kind(&self) -> PayloadKind {
        match self.content {
            Content::TransactionIpn(_) => PayloadKind::TransactionIpn,
            Content::OrderIpn(_) => PayloadKind::OrderIpn,
            Content::Refund(_) => PayloadKind::Refund,
            Content::Any => PayloadKind::Any,
        }
    }

    /// The listed fields.
    pub fn content(&self) -> &Content<'b> {
        &self.content
    }

    /// All of it, listed or not.
    pub(super) fn document(&self) -> &Value<'b> {
        &self.document
    }
}

impl fmt::Debug for Message<'_> {
    /// Names the kind alone: bodies don't belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Message").field(&self.kind()).finish()
    }
}

/// The listed fields of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<'b> {
    /// A payment's state changed.
    TransactionIpn(TransactionIpn<'b>),
    /// An order's state changed.
    OrderIpn(OrderIpn<'b>),
    /// Money goes back.
    Refund(Refund<'b>),
    /// Any JSON.
    Any,
}

/// A payment's state changed (Tiki VIP), in either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionIpn<'b> {
    /// `tiki_transaction_id`, or `reference_transaction_id` as later versions call it.
    pub tiki_transaction_id: Cow<'b, str>,
    /// The partner's own id.
    pub transaction_id: Cow<'b, str>,
    /// Not negative.
    pub transaction_amount: Decimal,
    /// In later versions.
    pub status: Option<TransactionStatus>,
    /// If it was given.
    pub partner_banking_method: Option<Cow<'b, str>>,
}

/// A payment's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// `SUCCESS`
    Success,
    /// `FAILURE`
    Failure,
    /// `PENDING`
    Pending,
}

impl TransactionStatus {
    /// The status of this word, as Tiki writes it.
    pub fn parse(word: &str) -> Option<Self> {
        let mut all = [Self::Success, Self::Failure, Self::Pending].into_iter();
        all.find(|status| status.as_str() == word)
    }

    /// The word for it, as Tiki writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Pending => "PENDING",
        }
    }
}

/// An order's state changed (Tini App).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderIpn<'b> {
    /// Unique per message.
    pub message_id: Cow<'b, str>,
    /// Such as `notification`.
    pub message_type: Cow<'b, str>,
    /// RFC 3339; tells which of two messages about one order is the later.
    pub message_created_at: jiff::Timestamp,
    /// `order.id`
    pub order_id: Cow<'b, str>,
    /// `order.status`, such as `online_paid` or `canceled`.
    pub order_status: Cow<'b, str>,
    /// `order.grand_total`, not negative.
    pub grand_total: i64,
    /// `order.tiki_order_id`
    pub tiki_order_id: Cow<'b, str>,
    /// `order.tiki_order_code`
    pub tiki_order_code: Cow<'b, str>,
    /// `order.extra`, as `key=value;key=value`.
    pub extra: Option<Cow<'b, str>>,
    /// `order.reference_id`
    pub reference_id: Option<Cow<'b, str>>,
}

/// Money goes back, all of a payment or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund<'b> {
    /// The partner's API must be idempotent by it.
    pub request_id: Cow<'b, str>,
    /// Tiki's id of the payment.
    pub tiki_transaction_id: Cow<'b, str>,
    /// The partner's id of the payment.
    pub transaction_id: Cow<'b, str>,
    /// What to give back; above zero.
    pub transaction_amount: Decimal,
    /// Free text.
    pub reason: Cow<'b, str>,
}

/// Why a body is not the message it should be. Displays as a sentence that repeats nothing of the
/// body but, shortened and escaped, the name of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadFault {
    /// Not JSON, or JSON that two readers could understand differently.
    #[error("{reason}")]
    Malformed {
        /// A sentence.
        reason: Cow<'static, str>,
    },
    /// A field is not what it must be.
    #[error("`{}` {problem}", Shown(.pointer))]
    Field {
        /// Which, as a JSON pointer.
        pointer: String,
        /// What it must be, or must not be; the rest of a sentence that starts with the field's name.
        problem: Cow<'static, str>,
    },
}

impl PayloadFault {
    pub(super) fn field(pointer: impl Into<String>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Field {
            pointer: pointer.into(),
            problem: problem.into(),
        }
    }
}

impl From<JsonError> for PayloadFault {
    fn from(error: JsonError) -> Self {
        Self::Malformed {
            reason: error.to_string().into(),
        }
    }
}

/// Reads a body as a message of this kind. [`PayloadKind::Any`] demands strict JSON and no fields.
///
/// # Errors
/// The first fault found; a field's name is in it.
pub fn parse_message(kind: PayloadKind, body: &[u8]) -> Result<Message<'_>, PayloadFault> {
    let document = json::parse(body)?;
    let content = match kind {
        PayloadKind::Any => Content::Any,
        _ => typed_content(kind, Fields::of_body(&document)?)?,
    };
    Ok(Message { content, document })
}

fn typed_content<'b>(
    kind: PayloadKind,
    fields: Fields<'_, 'b>,
) -> Result<Content<'b>, PayloadFault> {
    match kind {
        PayloadKind::TransactionIpn => transaction_ipn(fields).map(Content::TransactionIpn),
        PayloadKind::OrderIpn => order_ipn(fields).map(Content::OrderIpn),
        PayloadKind::Refund => refund(fields).map(Content::Refund),
        PayloadKind::Any => Ok(Content::Any),
    }
}

fn transaction_ipn<'b>(fields: Fields<'_, 'b>) -> Result<TransactionIpn<'b>, PayloadFault> {
    refuse_refund(fields)?;
    let transaction_amount = fields.amount("transaction_amount")?;
    if transaction_amount.is_negative() {
        return Err(fields.fault("transaction_amount", "must not be negative"));
    }
    Ok(TransactionIpn {
        tiki_transaction_id: platform_transaction_id(fields)?,
        transaction_id: fields.id("transaction_id")?,
        transaction_amount,
        status: status(fields)?,
        partner_banking_method: fields.optional_text("partner_banking_method")?,
    })
}

/// Both names of the id at once are fine while they agree: which one a backend reads is unknown.
fn platform_transaction_id<'b>(fields: Fields<'_, 'b>) -> Result<Cow<'b, str>, PayloadFault> {
    let (earlier, later) = ("tiki_transaction_id", "reference_transaction_id");
    match (fields.given(earlier), fields.given(later)) {
        (true, true) => {
            let id = fields.id(earlier)?;
            if fields.id(later)? != id {
                return Err(fields.fault(later, "differs from `/tiki_transaction_id`"));
            }
            Ok(id)
        }
        (false, true) => fields.id(later),
        _ => fields.id(earlier),
    }
}

fn status(fields: Fields<'_, '_>) -> Result<Option<TransactionStatus>, PayloadFault> {
    let Some(word) = fields.optional_text("status")? else {
        return Ok(None);
    };
    let status = TransactionStatus::parse(&word);
    let fault = || fields.fault("status", "must be SUCCESS, FAILURE or PENDING");
    status.map(Some).ok_or_else(fault)
}

fn order_ipn<'b>(fields: Fields<'_, 'b>) -> Result<OrderIpn<'b>, PayloadFault> {
    refuse_refund(fields)?;
    let order = order(fields)?;
    let created = fields.id("message_created_at")?;
    Ok(OrderIpn {
        message_id: fields.id("message_id")?,
        message_type: fields.id("message_type")?,
        message_created_at: read_rfc3339(&created).ok_or_else(|| {
            fields.fault("message_created_at", "must be a date and time of RFC 3339")
        })?,
        order_id: order.id("id")?,
        order_status: order.id("status")?,
        grand_total: grand_total(order)?,
        tiki_order_id: order.id("tiki_order_id")?,
        tiki_order_code: order.id("tiki_order_code")?,
        extra: order.optional_text("extra")?,
        reference_id: order.optional_text("reference_id")?,
    })
}

fn order<'v, 'b>(fields: Fields<'v, 'b>) -> Result<Fields<'v, 'b>, PayloadFault> {
    match fields.required("order")? {
        object @ Value::Object(_) => Ok(Fields {
            object,
            place: "/order",
        }),
        _ => Err(fields.fault("order", "must be an object")),
    }
}

fn grand_total(order: Fields<'_, '_>) -> Result<i64, PayloadFault> {
    let amount = order.amount("grand_total")?;
    if amount.is_negative() {
        return Err(order.fault("grand_total", "must not be negative"));
    }
    amount
        .to_i64()
        .ok_or_else(|| order.fault("grand_total", "must be an integer of 64 bits"))
}

/// The parser also takes what RFC 3339 does not, such as dates without a time or zones by name; the
/// shape is checked first.
fn read_rfc3339(text: &str) -> Option<jiff::Timestamp> {
    let (date_time, zone) = text.split_at_checked(19)?;
    let shaped = date_time
        .bytes()
        .zip(*b"0000-00-00T00:00:00")
        .all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            b'T' => matches!(byte, b'T' | b't' | b' '),
            other => byte == other,
        });
    let zone = match zone.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()),
        None => zone,
    };
    let shaped = shaped
        && match zone.as_bytes() {
            [b'Z' | b'z'] => true,
            [b'+' | b'-', hours @ .., b':', _, _] => hours.len() == 2,
            _ => false,
        };
    shaped.then(|| text.parse().ok())?
}

fn refund<'b>(fields: Fields<'_, 'b>) -> Result<Refund<'b>, PayloadFault> {
    let transaction_amount = fields.amount("transaction_amount")?;
    if transaction_amount.is_negative() || transaction_amount.is_zero() {
        return Err(fields.fault("transaction_amount", "must be greater than 0"));
    }
    let reason = fields.text("reason")?;
    if reason.is_empty() {
        return Err(fields.fault("reason", EMPTY));
    }
    Ok(Refund {
        request_id: fields.id("request_id")?,
        tiki_transaction_id: fields.id("tiki_transaction_id")?,
        transaction_id: fields.id("transaction_id")?,
        transaction_amount,
        reason,
    })
}

/// The path is not signed: somebody who captured a refund could post it to the IPN's route, where a
/// backend that looks at fields alone would see a payment.
fn refuse_refund(fields: Fields<'_, '_>) -> Result<(), PayloadFault> {
    if fields.has("request_id") && fields.has("reason") {
        return Err(fields.fault("request_id", "and `/reason` together make this a refund"));
    }
    Ok(())
}

const EMPTY: &str = "must not be empty";
const NO_STRING: &str = "must be a string";

/// An id: 1 to 256 bytes without control characters. The rest of a sentence when it is none.
pub(super) fn check_id(id: &str) -> Result<(), &'static str> {
    if id.is_empty() {
        return Err(EMPTY);
    }
    if id.len() > 256 {
        return Err("must have at most 256 bytes");
    }
    if id.chars().any(char::is_control) {
        return Err("must not have control characters");
    }
    Ok(())
}

/// An object of the body, with where it stands for the messages.
#[derive(Clone, Copy)]
struct Fields<'v, 'b> {
    object: &'v Value<'b>,
    place: &'static str,
}

impl<'v, 'b> Fields<'v, 'b> {
    fn of_body(document: &'v Value<'b>) -> Result<Self, PayloadFault> {
        match document {
            Value::Object(_) => Ok(Self {
                object: document,
                place: "",
            }),
            _ => Err(PayloadFault::Malformed {
                reason: "the body is not a JSON object".into(),
            }),
        }
    }

    fn fault(self, name: &str, problem: &'static str) -> PayloadFault {
        PayloadFault::field(format!("{}/{name}", self.place), problem)
    }

    fn has(self, name: &str) -> bool {
        self.object.member(name).is_some()
    }

    /// There, and not null.
    fn given(self, name: &str) -> bool {
        !matches!(self.object.member(name), None | Some(Value::Null))
    }

    fn required(self, name: &str) -> Result<&'v Value<'b>, PayloadFault> {
        match self.object.member(name) {
            None => Err(self.fault(name, "is required")),
            Some(Value::Null) => Err(self.fault(name, "must not be null")),
            Some(value) => Ok(value),
        }
    }

    fn text(self, name: &str) -> Result<Cow<'b, str>, PayloadFault> {
        match self.required(name)? {
            Value::String(text) => Ok(text.clone()),
            _ => Err(self.fault(name, NO_STRING)),
        }
    }

    fn optional_text(self, name: &str) -> Result<Option<Cow<'b, str>>, PayloadFault> {
        if self.given(name) {
            self.text(name).map(Some)
        } else {
            Ok(None)
        }
    }

    fn id(self, name: &str) -> Result<Cow<'b, str>, PayloadFault> {
        let id = self.text(name)?;
        check_id(&id).map_err(|problem| self.fault(name, problem))?;
        Ok(id)
    }

    fn amount(self, name: &str) -> Result<Decimal, PayloadFault> {
        match self.required(name)? {
            Value::Number(text) => Decimal::parse(text).map_err(|error| {
                PayloadFault::field(format!("{}/{name}", self.place), error.to_string())
            }),
            _ => Err(self.fault(name, "must be a number")),
        }
    }
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
