//! A call that the ledger kept, sent by a person's word: when Tiki may have stopped asking.
//!
//! It goes the way of any attempt, from its claim to its record, and joins a running one of the same
//! key, so that Tiki's own re-send at the same moment makes no second one.

use std::sync::Arc;

use http::StatusCode;

use crate::ledger::{KeptRequest, LedgerError, Record, RecordId, State};
use crate::telemetry::AccessLine;

use super::Gate;
use super::answer::Answer;
use super::attempt;
use super::call::{Facts, TraceParent};
use super::idempotency::run_key;
use super::parcel::Parcel;
use super::refusal::Refusal;
use super::route::RoutePlan;
use super::running::{Entry, LOST, Lead, Verdict};
use super::validate::{Identity, identify};

/// What a call that was sent by a person's word came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentNow {
    /// The status that Tiki would have been given.
    pub status: StatusCode,
    /// Where the record stands now.
    pub state: State,
}

/// Why a call was not sent by a person's word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSentNow {
    /// There is no such record.
    #[error("there is no such record")]
    NotFound,
    /// Only a released record is sent.
    #[error("only a released record is sent; this one is {}", .0.as_str())]
    NotReleased(State),
    /// The ledger keeps no call for it.
    #[error("the ledger keeps no call for this record")]
    NoRequest,
    /// The configuration has no such route any more.
    #[error("its route {0} is not in the configuration any more: it can't be sent by this gate")]
    NoRoute(String),
    /// The configuration has no such client any more, or the route is not for it.
    #[error("its client {0} may not call the route any more: it can't be sent by this gate")]
    NoClient(String),
    /// What is kept is not what the configuration makes this key of.
    #[error(
        "the kept call is another message by this configuration: it can't be sent by this gate"
    )]
    AnotherMessage,
    /// The gate is about to stop.
    #[error("the gate is about to stop")]
    Draining,
    /// The same key is being run for other money fields, or too many wait for it.
    #[error("the same key is busy: try again in a minute")]
    Busy,
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The claim was not granted, or what was tried certainly did not get through.
    #[error("it was not granted: {0}")]
    Refused(String),
}

impl Gate {
    /// Sends the kept call of a released record now, as an attempt of its own, and resolves when its
    /// outcome is recorded. What was begun goes on when the future is dropped.
    ///
    /// # Errors
    /// See [`NotSentNow`]: nothing was sent in any of these cases.
    pub async fn send_now(self: &Arc<Self>, id: RecordId) -> Result<SentNow, NotSentNow> {
        let common = &self.common;
        // Taken before the look at the drain, which waits for all tokens: none slips in behind it.
        let _running = common.calls.tasks.token();
        if common.admission.crowd.is_draining() {
            return Err(NotSentNow::Draining);
        }
        let record = common.ledger.get(id).await?.ok_or(NotSentNow::NotFound)?;
        if record.state != State::Released {
            return Err(NotSentNow::NotReleased(record.state));
        }
        let request = common.ledger.request(id).await?;
        let parcel = self.unpack(&record, request.ok_or(NotSentNow::NoRequest)?)?;
        let facts = Arc::clone(&parcel.facts);
        let plan = Arc::clone(&parcel.plan);
        let ran = self.run_now(parcel).await?;
        let state = common.ledger.get(id).await?.map(|record| record.state);
        let result = ran.result();
        let status = self.report(&facts, &plan, &record, result);
        match (&ran, result) {
            (Ran::Own(_), Err(refusal)) if facts.attempt.get().is_none() => {
                Err(NotSentNow::Refused(refusal.message()))
            }
            _ => Ok(SentNow {
                status,
                // Only what is done is ever forgotten.
                state: state.unwrap_or(State::Done),
            }),
        }
    }

    /// What the ledger kept, as it can be sent: by its route and client as they are configured now,
    /// and only if they still make the same key and money fields of it.
    fn unpack(&self, record: &Record, request: KeptRequest) -> Result<Box<Parcel>, NotSentNow> {
        let common = &self.common;
        let Some(plan) = common.routes.named(&record.route) else {
            return Err(NotSentNow::NoRoute(record.route.to_string()));
        };
        let client = common.clients.get(&record.key.client);
        let client = client.filter(|client| plan.route.clients.contains(&client.index));
        let client = client.ok_or_else(|| NotSentNow::NoClient(record.key.client.to_string()))?;
        let identity = identify(plan, client, &request.body).ok().flatten();
        let same = |identity: &Identity| {
            identity.key == record.key && identity.fingerprint == record.fingerprint
        };
        let identity = identity.filter(same).ok_or(NotSentNow::AnotherMessage)?;
        Ok(Parcel::kept(
            request,
            identity,
            Arc::clone(plan),
            Arc::clone(client),
            self.request_ids.next(),
        ))
    }

    /// Runs the parcel, or waits for the same message's attempt that runs already.
    async fn run_now(self: &Arc<Self>, parcel: Box<Parcel>) -> Result<Ran, NotSentNow> {
        let (key, fingerprint) = run_key(&parcel);
        loop {
            match self.common.running.enter(key.clone(), fingerprint) {
                Entry::Lead(lead) => return Ok(Ran::Own(self.run_detached(parcel, lead).await)),
                Entry::Join(joined) => match joined.running().verdict().await {
                    Verdict::Shared(result) => return Ok(Ran::Joined(result)),
                    Verdict::Own(_) => {}
                },
                Entry::Await(joined) => drop(joined.running().verdict().await),
                Entry::Conflict | Entry::Crowded => return Err(NotSentNow::Busy),
            }
        }
    }

    /// In a task of its own: the person may go away.
    async fn run_detached(
        self: &Arc<Self>,
        parcel: Box<Parcel>,
        lead: Lead,
    ) -> Result<Answer, Refusal> {
        let attempt = attempt::detached(Arc::clone(self), parcel, lead);
        match self.common.calls.tasks.spawn(attempt).await.unwrap_or(LOST) {
            Verdict::Shared(result) => result,
            Verdict::Own(refusal) => Err(refusal),
        }
    }

    /// The log line of a call that nobody made; gives the status that Tiki would have been given.
    fn report(
        &self,
        facts: &Facts,
        plan: &RoutePlan,
        record: &Record,
        result: &Result<Answer, Refusal>,
    ) -> StatusCode {
        let refusal = result.as_ref().err();
        let status = match result {
            Ok(answer) => answer.kept.status,
            Err(refusal) => refusal.status(self.common.refuse_with()),
        };
        self.log.write(&AccessLine {
            time: Some(self.common.clock.now()),
            request_id: Some(facts.request_id.as_str()),
            trace_id: facts.trace.as_ref().map(TraceParent::trace_id),
            sent_by_person: Some(true),
            method: Some(plan.route.method.as_str()),
            route: Some(plan.route.name.as_str()),
            idempotency_key: Some(&record.key.message),
            status: Some(status.as_u16()),
            error: refusal.map(Refusal::code),
            reason: refusal
                .map(Refusal::reason)
                .filter(|reason| !reason.is_empty()),
            attempt: facts.attempt.get(),
            upstream_status: facts.upstream_status.get(),
            upstream_duration: facts.upstream_took(),
            duration: Some(facts.first_byte.elapsed()),
            ..AccessLine::default()
        });
        status
    }
}

/// Whose attempt it was.
enum Ran {
    Own(Result<Answer, Refusal>),
    /// Tiki's own re-send was running.
    Joined(Result<Answer, Refusal>),
}

impl Ran {
    fn result(&self) -> &Result<Answer, Refusal> {
        let (Self::Own(result) | Self::Joined(result)) = self;
        result
    }
}
