//! Faults on order: what to do with which of the next calls.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// `POST {base}/payment/ipn`.
    Ipn,
    /// `GET {base}/transaction`.
    Status,
    /// `POST {base}/webview`.
    Webview,
    /// Anything else below the base path.
    Other,
    /// Anything that is not below the base path.
    Outside,
}

/// The calls that an order is for. None is for calls outside of the base path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// IPNs.
    Ipn,
    /// Questions for a transaction's status.
    Status,
    /// Questions for a webview's URL.
    Webview,
    /// Anything else below the base path.
    Other,
    /// Anything below the base path.
    #[default]
    Any,
}

impl Wanted {
    fn takes(self, call: Call) -> bool {
        matches!(
            (self, call),
            (Self::Ipn, Call::Ipn)
                | (Self::Status, Call::Status)
                | (Self::Webview, Call::Webview)
                | (Self::Other, Call::Other)
                | (
                    Self::Any,
                    Call::Ipn | Call::Status | Call::Webview | Call::Other
                )
        )
    }
}

/// The two forms in which Tiki answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// 200 with `{"code":N,...}`.
    #[default]
    Code,
    /// 200 with `{"data":{"status":"success"}}`, 500 with `{"data":null,"error":{...}}`.
    #[serde(alias = "envelope")]
    #[value(alias = "envelope")]
    Partner,
}

/// One fault. `apply` says whether the books take the call before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Answers with this code.
    Code {
        /// Tiki's code.
        code: u32,
        /// Left out: the form in which all is answered.
        #[serde(default)]
        form: Option<Form>,
        /// False if left out.
        #[serde(default)]
        apply: bool,
    },
    /// Answers with this status and body.
    Http {
        /// The status.
        status: u16,
        /// The body, empty if left out.
        #[serde(default)]
        body: String,
        /// False if left out.
        #[serde(default)]
        apply: bool,
    },
    /// Resets the connection when the head has come. (An order that names a transaction has to wait
    /// for the body of an IPN.)
    ResetAtOnce,
    /// Takes the call, then resets the connection.
    ApplyThenReset,
    /// Takes the call, then closes the connection.
    ApplyThenClose,
    /// Takes the call and answers after this time.
    ApplyThenHang {
        /// Milliseconds.
        ms: u64,
    },
    /// Waits, then takes the call and answers. If the caller leaves before, nothing is taken.
    Hang {
        /// Milliseconds.
        ms: u64,
    },
    /// Takes the call, sends half of the answer, then closes the connection.
    HalfAnswer,
    /// Answers 200 with what is no JSON.
    Garbage {
        /// True if left out.
        #[serde(default = "yes")]
        apply: bool,
    },
    /// Answers 200 with a success of this size.
    Huge {
        /// The body's length.
        bytes: usize,
        /// True if left out.
        #[serde(default = "yes")]
        apply: bool,
    },
    /// Answers 302.
    Redirect {
        /// Where to.
        url: String,
        /// False if left out.
        #[serde(default)]
        apply: bool,
    },
    /// Takes the call and sends the answer byte by byte.
    Slow {
        /// Milliseconds before each byte.
        ms: u64,
    },
    /// Takes the call; before it answers, it makes a signed call and waits for its end.
    CallFirst {
        /// Where to.
        url: String,
        /// Its body.
        body: String,
        /// The client id to sign with.
        client: String,
    },
}

fn yes() -> bool {
    true
}

/// An order. Of those that fit a call, the first with times left is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// For which calls.
    #[serde(default)]
    pub call: Wanted,
    /// Only for calls about this `tiki_transaction_id`.
    #[serde(default)]
    pub transaction: Option<String>,
    /// How often; once if left out.
    #[serde(default = "once")]
    pub times: u64,
    /// What to do.
    #[serde(rename = "do")]
    pub action: Action,
}

fn once() -> u64 {
    1
}

impl Order {
    /// Once, for the next call of this kind.
    pub fn new(call: Wanted, action: Action) -> Self {
        Self {
            call,
            transaction: None,
            times: 1,
            action,
        }
    }

    /// The same so many times.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// The same for one transaction.
    pub fn transaction(mut self, id: impl Into<String>) -> Self {
        self.transaction = Some(id.into());
        self
    }

    /// An action's parameters are checked when it is ordered, not when it is due.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        match &self.action {
            Action::Http { status, .. } if !(200..=599).contains(status) => {
                Err(format!("{status} is no final HTTP status"))
            }
            Action::Redirect { url, .. } if url.contains(['\r', '\n']) => {
                Err("a redirect's URL is one line".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Orders {
    queue: VecDeque<Order>,
}

impl Orders {
    pub(super) fn push(&mut self, order: Order) {
        if order.times > 0 {
            self.queue.push_back(order);
        }
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Order> {
        self.queue.iter()
    }

    /// Uses an order for a call whose transaction is known, or known not to be said.
    pub(super) fn take(&mut self, call: Call, transaction: Option<&str>) -> Option<Action> {
        let place = self.queue.iter().position(|order| {
            order.call.takes(call)
                && (order.transaction.is_none() || order.transaction.as_deref() == transaction)
        })?;
        Some(self.use_one(place))
    }

    /// Uses an order to reset a call of which only the head has come.
    pub(super) fn take_reset(&mut self, call: Call) -> bool {
        let place = self.queue.iter().position(|order| order.call.takes(call));
        let Some((place, order)) = place.and_then(|place| Some((place, self.queue.get(place)?)))
        else {
            return false;
        };
        if order.transaction.is_some() || order.action != Action::ResetAtOnce {
            return false;
        }
        self.use_one(place);
        true
    }

    fn use_one(&mut self, place: usize) -> Action {
        let order = &mut self.queue[place];
        order.times -= 1;
        let action = order.action.clone();
        if order.times == 0 {
            self.queue.remove(place);
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_order_that_fits_is_used_as_often_as_it_says() {
        let mut orders = Orders::default();
        orders.push(Order::new(Wanted::Ipn, Action::ApplyThenReset).transaction("t-1"));
        orders.push(Order::new(Wanted::Any, Action::HalfAnswer).times(2));
        orders.push(Order::new(Wanted::Any, Action::ApplyThenClose).times(0));
        let half = Some(Action::HalfAnswer);
        assert_eq!(orders.take(Call::Outside, None), None);
        assert_eq!(orders.take(Call::Ipn, Some("t-2")), half);
        assert_eq!(
            orders.take(Call::Ipn, Some("t-1")),
            Some(Action::ApplyThenReset)
        );
        assert_eq!(orders.take(Call::Status, Some("t-1")), half);
        assert_eq!(orders.take(Call::Ipn, Some("t-1")), None);
        assert_eq!(orders.all().count(), 0);
    }

    #[test]
    fn a_reset_needs_no_body_unless_an_earlier_order_may_fit_it() {
        let mut orders = Orders::default();
        orders.push(Order::new(Wanted::Ipn, Action::ResetAtOnce));
        assert!(!orders.take_reset(Call::Status));
        assert!(orders.take_reset(Call::Ipn));
        assert!(!orders.take_reset(Call::Ipn));
        orders.push(Order::new(Wanted::Ipn, Action::HalfAnswer).transaction("t-1"));
        orders.push(Order::new(Wanted::Ipn, Action::ResetAtOnce));
        assert!(!orders.take_reset(Call::Ipn));
    }

    #[test]
    fn orders_are_read_strictly() {
        let read = |text: &str| serde_json::from_str::<Order>(text).map_err(|e| e.to_string());
        let order = read(r#"{"call":"ipn","times":3,"do":{"code":{"code":5,"form":"envelope"}}}"#);
        let action = Action::Code {
            code: 5,
            form: Some(Form::Partner),
            apply: false,
        };
        assert_eq!(order.unwrap(), Order::new(Wanted::Ipn, action).times(3));
        let order = read(r#"{"do":"reset_at_once"}"#).unwrap();
        assert_eq!(order, Order::new(Wanted::Any, Action::ResetAtOnce));
        for (bad, word) in [
            (r#"{"do":"reset"}"#, "unknown variant"),
            (r#"{"do":{"hang":{"ms":1,"s":2}}}"#, "unknown field `s`"),
            (r#"{"do":"half_answer","time":2}"#, "unknown field `time`"),
            (r#"{"call":"ipn"}"#, "missing field `do`"),
        ] {
            assert!(read(bad).unwrap_err().contains(word), "{bad}");
        }
    }
}
