//! What every outbox promises, as tests over any of them.
//!
//! A store writes `suite!(path::to::open);` in its tests, where `open` is an async function that gives
//! a [`Fixture`] with an empty outbox of the given [`Setting`] on a manual clock.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Outbox;
use super::rules::{OVERHEAD, Policy};
use super::types::{
    Accepted, Delivery, DeliveryId, Filter, Flight, Posting, Report, State, Step, Taken, Word,
};
use crate::clock::{Clock, ManualClock};
use crate::outbound::status::Expected;
use crate::tiki::{Decimal, IpnReply, ReplyCode, TransactionStatus};

pub(super) mod crowds;
pub(super) mod keeping;
pub(super) mod posting;
pub(super) mod trying;

macro_rules! suite {
    ($open:path) => {
        $crate::outbound::outbox::conformance::suite!(@ $open;
            posting: a_notice_is_stored_once, what_was_posted_comes_back_byte_for_byte,
                contradictions_are_told, later_states_supersede_earlier_ones,
                what_ended_is_opened_again, what_is_over_makes_room,
                failed_ones_make_no_room, a_longer_body_needs_room_too, clients_are_told_apart;
            trying: what_is_due_is_taken_in_its_order, one_of_a_transaction_at_a_time,
                those_that_wait_for_a_sibling_stand_in_nobodys_way,
                what_a_wrong_clock_put_off_is_due, answers_end_a_delivery,
                unclear_tries_are_made_again_and_then_asked_about, a_flight_that_never_began_goes_back,
                a_lapsed_flight_may_have_been_taken, a_late_record_is_only_good_news,
                what_was_tried_of_another_amount_says_nothing, a_record_made_twice_counts_once, what_takes_too_long_is_given_up,
                a_raised_generation_asks_first, what_no_account_delivers_is_held,
                held_ones_stand_in_nobodys_way,
                the_backend_is_told_until_it_hears;
            keeping: lists_are_filtered_and_go_on, words_are_checked, a_persons_words_are_kept,
                stats_count_every_state, over_ones_are_forgotten_in_time,
                unknown_ones_are_nobodys;
            crowds: one_amount_wins, a_storm_of_takes_gives_nothing_twice,
                posts_and_records_of_a_transaction_go_one_by_one, the_sum_of_bytes_stays_true;
        );
    };
    (@ $open:path; $($module:ident: $($test:ident),+;)+) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::outbound::outbox::conformance::$module::$test(
                    $crate::outbound::outbox::conformance::Open(|setting| Box::pin($open(setting))),
                )
                .await;
            })+
        })+
    };
}
pub(super) use suite;

/// Makes empty outboxes.
#[derive(Clone, Copy)]
pub(super) struct Open(pub(super) fn(Setting) -> Pin<Box<dyn Future<Output = Fixture>>>);

impl Open {
    pub(super) async fn one(self) -> Fixture {
        (self.0)(Setting::default()).await
    }

    pub(super) async fn with_room_for(self, bodies: usize) -> Fixture {
        let max_bytes = bodies * (OVERHEAD + BODY.len());
        (self.0)(Setting {
            max_bytes,
            ..Setting::default()
        })
        .await
    }
}

/// How an outbox is set up.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) policy: Policy,
    pub(super) max_bytes: usize,
    pub(super) keep: Duration,
    pub(super) pins: Vec<(String, String)>,
}

impl Default for Setting {
    fn default() -> Self {
        let pin = |client: &str, base_url: &str| (client.to_owned(), base_url.to_owned());
        Self {
            policy: POLICY,
            max_bytes: 1 << 30,
            keep: KEEP,
            pins: vec![pin("c", TIKI), pin("d", TIKI)],
        }
    }
}

pub(super) const TIKI: &str = "https://tiki.example/sandbox";
pub(super) const KEEP: Duration = Duration::from_secs(86_400);
pub(super) const BODY: &[u8] = b"{\"a\": 1}";
pub(super) const POLICY: Policy = Policy {
    retry_after: Duration::from_secs(1),
    longest_pause: Duration::from_secs(60),
    give_up_after: Duration::from_secs(3600),
    tells: true,
};

pub(super) const START: Duration = Duration::from_secs(1_790_000_000);

pub(super) fn clock() -> (Clock, ManualClock) {
    Clock::manual(SystemTime::UNIX_EPOCH + START)
}

/// Raises the store's generation, as somebody does who finds that it forgot something.
pub(super) type Raise = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()>>>>;

/// An empty outbox and the hands of its clock.
pub(super) struct Fixture {
    pub(super) outbox: Arc<dyn Outbox>,
    /// The same outbox as another gate has it, where several may; else the same.
    pub(super) other: Arc<dyn Outbox>,
    pub(super) clock: Clock,
    pub(super) hands: ManualClock,
    /// None where nothing outlives the process.
    pub(super) raise: Option<Raise>,
    /// What must live as long as the outbox.
    pub(super) _held: Box<dyn Any>,
}

pub(super) fn posting(name: &str, status: &str, amount: &str) -> Posting {
    Posting {
        client: "c".to_owned(),
        base_url: TIKI.to_owned(),
        expected: Expected {
            tiki_transaction_id: format!("T-{name}"),
            transaction_id: format!("p-{name}"),
            amount: Decimal::parse(amount).unwrap(),
            status: TransactionStatus::parse(status).unwrap(),
        },
        body: Bytes::from_static(BODY),
    }
}

pub(super) const TAKEN: Report = Report::Answered(IpnReply::Taken);
pub(super) const UNCLEAR: Report = Report::Answered(IpnReply::Again);

pub(super) fn refused() -> Report {
    Report::Answered(IpnReply::Refused(Some(ReplyCode::Cancelled)))
}

pub(super) fn word(retry: bool) -> Word {
    Word {
        retry,
        by: "linh".to_owned(),
        reason: "the bank's statement".to_owned(),
    }
}

impl Fixture {
    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(super) async fn post(&self, posting: Posting) -> Accepted {
        self.outbox.post(posting).await.unwrap()
    }

    /// The id of a notice that must be new.
    pub(super) async fn stored(&self, posting: Posting) -> DeliveryId {
        match self.post(posting).await {
            Accepted::Stored(id) => id,
            other => panic!("not stored: {other:?}"),
        }
    }

    /// A paid transaction's notice that must be new.
    pub(super) async fn paid(&self, name: &str) -> DeliveryId {
        self.stored(posting(name, "SUCCESS", "1000")).await
    }

    pub(super) async fn take(&self, limit: usize) -> Taken {
        self.outbox.take(limit).await.unwrap()
    }

    /// The only flight there is to be had now.
    pub(super) async fn flight(&self) -> Flight {
        let mut flights = self.take(10).await.flights;
        assert_eq!(flights.len(), 1, "{flights:?}");
        flights.remove(0)
    }

    pub(super) async fn record(&self, flight: Flight, report: Report) -> Delivery {
        self.outbox.record(flight, report).await.unwrap()
    }

    /// Takes the only one that is due and records this.
    pub(super) async fn turn(&self, step: Step, report: Report) -> Delivery {
        let flight = self.flight().await;
        assert_eq!(flight.delivery.step, step);
        self.record(flight, report).await
    }

    /// Waits until it is due.
    pub(super) async fn until_due(&self, id: DeliveryId) {
        let next_at = self.get(id).await.next_at;
        let wait = next_at.duration_since(self.now()).unwrap_or_default();
        self.hands.advance(wait + Duration::from_micros(1));
    }

    pub(super) async fn get(&self, id: DeliveryId) -> Delivery {
        self.outbox.get(id).await.unwrap().unwrap()
    }

    pub(super) async fn state(&self, id: DeliveryId) -> State {
        self.get(id).await.state
    }

    /// What happened to it, in words.
    pub(super) async fn story(&self, id: DeliveryId) -> Vec<String> {
        let events = self.get(id).await.events;
        events.into_iter().map(|event| event.what).collect()
    }

    pub(super) async fn listed(&self, filter: Filter) -> Vec<DeliveryId> {
        let page = self.outbox.list(filter).await.unwrap();
        page.deliveries.iter().map(|one| one.id).collect()
    }

    /// What is kept in bytes, and what it should be.
    pub(super) async fn bytes(&self) -> (u64, u64) {
        let filter = Filter {
            limit: 1000,
            ..Filter::default()
        };
        let kept = self.outbox.list(filter).await.unwrap().deliveries;
        let size = |one: &Delivery| (one.body.len() + OVERHEAD) as u64;
        let stats = self.outbox.stats().await.unwrap();
        (stats.bytes, kept.iter().map(size).sum())
    }
}
