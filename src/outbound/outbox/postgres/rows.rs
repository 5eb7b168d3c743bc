//! Deliveries as rows of PostgreSQL.

use std::sync::LazyLock;
use std::time::SystemTime;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};

use crate::outbound::outbox::rows::{events_of, events_text, refusal_text, size};
use crate::outbound::outbox::types::{Delivery, DeliveryId, Outcome, State, Step};
use crate::store::postgres::Fault;

/// A parameter of a statement.
pub(super) type Value<'a> = &'a (dyn ToSql + Sync);

/// Columns that a change may touch, in the order of [`Changing::values`].
const CHANGING: [&str; 19] = [
    "base_url",
    "amount",
    "state",
    "step",
    "place",
    "tries",
    "asks",
    "maybe_taken",
    "refusal",
    "flight",
    "flying_until",
    "next_at",
    "opened_at",
    "updated_at",
    "generation",
    "outcome",
    "tell_at",
    "tellings",
    "events",
];

/// Columns that are written once, in the order of [`insert_values`].
const FIXED: [&str; 6] = [
    "client",
    "tiki_transaction_id",
    "transaction_id",
    "transaction_lock",
    "status",
    "created_at",
];

/// What [`read`] reads, of `d`.
pub(super) static COLUMNS: LazyLock<String> = LazyLock::new(|| {
    let read = [
        "client",
        "tiki_transaction_id",
        "transaction_id",
        "status",
        "created_at",
    ];
    let columns = read.iter().chain(&CHANGING);
    let columns: Vec<_> = columns.map(|name| format!("d.{name}")).collect();
    format!("d.id, d.body, {}", columns.join(", "))
});

/// Stores a delivery and gives its id. Parameters: what is written once, what changes, size, body.
pub(super) static INSERT: LazyLock<String> = LazyLock::new(|| {
    let columns = FIXED.iter().chain(&CHANGING).chain(&["size", "body"]);
    let columns: Vec<_> = columns.copied().collect();
    let places: Vec<_> = (1..=columns.len())
        .map(|place| format!("${place}"))
        .collect();
    format!(
        "insert into tikigate.delivery ({}) values ({}) returning id",
        columns.join(", "),
        places.join(", ")
    )
});

/// Changes a delivery. Parameters: its id, its body or null where that stays, its size, what changes.
pub(super) static UPDATE: LazyLock<String> = LazyLock::new(|| {
    let pairs = CHANGING.iter().zip(4..);
    let pairs: Vec<_> = pairs
        .map(|(name, place)| format!("{name} = ${place}"))
        .collect();
    format!(
        "update tikigate.delivery set body = coalesce($2, body), size = $3, {} where id = $1",
        pairs.join(", ")
    )
});

/// The number that a transaction is locked by. Two that share it only wait for each other.
pub(super) fn lock_of(client: &str, tiki_transaction_id: &str, transaction_id: &str) -> i64 {
    let mut hash = Sha256::new();
    // Told apart from whatever else is locked by a hash.
    for part in ["outbox", client, tiki_transaction_id, transaction_id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(bytes)
}

/// The bytes that a delivery counts for.
pub(super) fn size_of(delivery: &Delivery) -> i64 {
    i64::try_from(size(delivery)).unwrap_or(i64::MAX)
}

/// A delivery's columns, ready to be written.
pub(super) struct Written<'a> {
    delivery: &'a Delivery,
    id: i64,
    lock: i64,
    size: i64,
    body: &'a [u8],
    new_body: Option<&'a [u8]>,
    state: &'static str,
    step: &'static str,
    place: i64,
    tries: i64,
    asks: i64,
    refusal: Option<String>,
    flight: i64,
    generation: i64,
    outcome: Option<String>,
    tellings: i64,
    events: String,
}

impl<'a> Written<'a> {
    /// Of a delivery that was so before, if it is there.
    pub(super) fn of(delivery: &'a Delivery, before: Option<&Delivery>) -> Self {
        let body = &delivery.body[..];
        // A body that stays is not written anew, however large it is.
        let stays = before.is_some_and(|before| before.body == delivery.body);
        Self {
            delivery,
            id: delivery.id.0.cast_signed(),
            lock: lock_of(
                &delivery.client,
                &delivery.tiki_transaction_id,
                &delivery.transaction_id,
            ),
            size: size_of(delivery),
            body,
            new_body: (!stays).then_some(body),
            state: delivery.state.as_str(),
            step: delivery.step.as_str(),
            place: delivery.place.cast_signed(),
            tries: i64::from(delivery.tries),
            asks: i64::from(delivery.asks),
            refusal: refusal_text(delivery),
            flight: delivery.flight.cast_signed(),
            generation: delivery.generation.cast_signed(),
            outcome: delivery.outcome.map(Outcome::text),
            tellings: i64::from(delivery.tellings),
            events: events_text(&delivery.events),
        }
    }

    /// The parameters of [`INSERT`].
    pub(super) fn insert_values(&self) -> Vec<Value<'_>> {
        let delivery = self.delivery;
        let fixed: [Value<'_>; FIXED.len()] = [
            &delivery.client,
            &delivery.tiki_transaction_id,
            &delivery.transaction_id,
            &self.lock,
            &delivery.status,
            &delivery.created_at,
        ];
        let mut values = fixed.to_vec();
        values.extend(self.changing());
        values.extend([&self.size as Value<'_>, &self.body]);
        values
    }

    /// The parameters of [`UPDATE`].
    pub(super) fn update_values(&self) -> Vec<Value<'_>> {
        let mut values: Vec<Value<'_>> = vec![&self.id, &self.new_body, &self.size];
        values.extend(self.changing());
        values
    }

    fn changing(&self) -> [Value<'_>; CHANGING.len()] {
        let delivery = self.delivery;
        [
            &delivery.base_url,
            &delivery.amount,
            &self.state,
            &self.step,
            &self.place,
            &self.tries,
            &self.asks,
            &delivery.maybe_taken,
            &self.refusal,
            &self.flight,
            &delivery.flying_until,
            &delivery.next_at,
            &delivery.opened_at,
            &delivery.updated_at,
            &self.generation,
            &self.outcome,
            &delivery.tell_at,
            &self.tellings,
            &self.events,
        ]
    }
}

/// Reads a row of [`COLUMNS`].
pub(super) fn read(row: &Row) -> Result<Delivery, Fault> {
    let mut columns = Columns { row, next: 0 };
    let id = DeliveryId(columns.unsigned()?);
    let body: &[u8] = columns.take()?;
    let body = Bytes::copy_from_slice(body);
    let client = columns.take()?;
    let tiki_transaction_id = columns.take()?;
    let transaction_id = columns.take()?;
    let status = columns.take()?;
    let created_at = columns.take()?;
    Ok(Delivery {
        id,
        client,
        base_url: columns.take()?,
        tiki_transaction_id,
        transaction_id,
        status,
        amount: columns.take()?,
        body,
        state: State::parse(columns.take()?).ok_or(Fault::Corrupt("a delivery's state"))?,
        step: Step::parse(columns.take()?).ok_or(Fault::Corrupt("a delivery's step"))?,
        place: columns.unsigned()?,
        tries: columns.count()?,
        asks: columns.count()?,
        maybe_taken: columns.take()?,
        refusal: columns
            .take::<Option<&str>>()?
            .map(|text| text.parse().ok()),
        flight: columns.unsigned()?,
        flying_until: columns.take()?,
        next_at: columns.take()?,
        created_at,
        opened_at: columns.take()?,
        updated_at: columns.take()?,
        generation: columns.unsigned()?,
        outcome: match columns.take::<Option<&str>>()? {
            Some(text) => Some(Outcome::parse(text).ok_or(Fault::Corrupt("an outcome"))?),
            None => None,
        },
        tell_at: columns.take::<Option<SystemTime>>()?,
        tellings: columns.count()?,
        held: false,
        events: events_of(columns.take()?).ok_or(Fault::Corrupt("a delivery's events"))?,
    })
}

/// Reads a row's columns one after the other.
struct Columns<'a> {
    row: &'a Row,
    next: usize,
}

impl<'a> Columns<'a> {
    fn take<T: FromSql<'a>>(&mut self) -> Result<T, Fault> {
        let value = self.row.try_get(self.next)?;
        self.next += 1;
        Ok(value)
    }

    fn unsigned(&mut self) -> Result<u64, Fault> {
        Ok(self.take::<i64>()?.cast_unsigned())
    }

    fn count(&mut self) -> Result<u32, Fault> {
        u32::try_from(self.take::<i64>()?).map_err(|_| Fault::Corrupt("a count"))
    }
}
