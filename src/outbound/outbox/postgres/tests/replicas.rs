//! Several gates on one database, some of which are paused, configured otherwise, or cut off.

use super::*;
use crate::outbound::outbox::conformance::{TAKEN, TIKI, UNCLEAR, posting, refused};
use crate::outbound::outbox::rules::FLIGHT;
use crate::outbound::outbox::types::{Outcome, State, Step};

/// Nothing here waits longer for the other side.
const PATIENCE: Duration = Duration::from_secs(30);

async fn stored(gate: &PostgresOutbox, name: &str) -> DeliveryId {
    match gate.post(posting(name, "SUCCESS", "1000")).await {
        Ok(Accepted::Stored(id)) => id,
        other => panic!("not stored: {other:?}"),
    }
}

async fn flight(gate: &PostgresOutbox) -> Flight {
    let mut flights = gate.take(10).await.unwrap().flights;
    assert_eq!(flights.len(), 1, "{flights:?}");
    flights.remove(0)
}

#[tokio::test]
async fn flights_end_by_the_servers_clock() {
    let database = Database::take();
    let setting = Setting::default();
    let (one, two) = (
        gate(&database, &setting, None),
        gate(&database, &setting, None),
    );
    let id = stored(&one, "a").await;
    let before = Instant::now();
    let first = flight(&one).await;
    assert!(
        first.valid_until >= before + MAY_BEGIN && first.valid_until <= Instant::now() + MAY_BEGIN
    );
    let left = "
        select flying_until - clock_timestamp() between interval '100 s' and interval '150 s'
        from tikigate.delivery";
    assert_eq!(database.query(left), "t");
    assert!(two.take(10).await.unwrap().flights.is_empty());
    assert_eq!(two.word(id, retry()).await, Err(WordFault::InFlight));
    let lapse = |id: DeliveryId| {
        let id = id.0;
        database.query(&format!(
            "update tikigate.delivery set flying_until = clock_timestamp() where id = {id}"
        ));
    };
    lapse(id);
    let second = flight(&two).await;
    assert!(second.delivery.maybe_taken);
    // The first one was paused, and goes on: it changes nothing of what the second one does.
    let kept = one.record(first.clone(), refused()).await.unwrap();
    assert_eq!((kept.state, kept.flight), (State::Pending, 2));
    let kept = one.record(first.clone(), UNCLEAR).await.unwrap();
    assert_eq!(kept.flying_until, second.delivery.flying_until);
    one.give_back(vec![first.clone()]).await.unwrap();
    assert!(one.take(10).await.unwrap().flights.is_empty());
    let kept = two.record(second, refused()).await.unwrap();
    assert_eq!((kept.state, kept.step), (State::Pending, Step::Ask));
    // But that it was taken is worth knowing now that nobody tries.
    let kept = one.record(first, TAKEN).await.unwrap();
    assert_eq!(kept.outcome, Some(Outcome::Taken));
}

#[tokio::test]
async fn a_row_that_no_gate_wrote_stands_in_nobodys_way() {
    let database = Database::take();
    let gate = gate(&database, &Setting::default(), None);
    for name in ["a", "b", "c"] {
        stored(&gate, name).await;
    }
    database.query("update tikigate.delivery set events = 'no list'");
    let whole = stored(&gate, "whole").await;
    let taken = gate.take(1).await.unwrap();
    assert_eq!(taken.flights.len(), 1);
    assert_eq!(taken.flights[0].delivery.id, whole);
    let taken = gate.take(1).await.unwrap();
    assert!(taken.flights.is_empty());
}

fn retry() -> Word {
    crate::outbound::outbox::conformance::word(true)
}

#[tokio::test]
async fn what_another_gate_works_on_is_left_to_it() {
    let database = Database::take();
    let setting = Setting::default();
    let gate = gate(&database, &setting, None);
    let first = stored(&gate, "a").await;
    let second = stored(&gate, "b").await;
    let store = database.store();
    let (locked, is_locked) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = tokio::sync::oneshot::channel::<()>();
    let holding = store.run(async move |session: &mut Session| {
        session.begin().await?;
        let lock = format!(
            "select pg_advisory_xact_lock(transaction_lock) from tikigate.delivery where id = {}",
            first.0
        );
        session.run(&lock).await?;
        let _ = locked.send(());
        let _ = goes_on.await;
        session.rollback().await
    });
    let holding = tokio::spawn(holding);
    is_locked.await.unwrap();
    // Not even waited for: the other one is taken.
    let taken = flight(&gate).await;
    assert_eq!(taken.delivery.id, second);
    go_on.send(()).unwrap();
    holding.await.unwrap().unwrap();
    assert_eq!(flight(&gate).await.delivery.id, first);
}

#[tokio::test]
async fn a_gate_takes_what_its_own_accounts_are_for() {
    let database = Database::take();
    let (clock, hands) = clock();
    let old = Setting::default();
    let moved = "https://tiki.example/moved";
    let new = Setting {
        pins: vec![("c".to_owned(), moved.to_owned())],
        ..old.clone()
    };
    let (old, new) = (
        gate(&database, &old, Some(&clock)),
        gate(&database, &new, Some(&clock)),
    );
    let ours = stored(&old, "a").await;
    let mut theirs = posting("b", "SUCCESS", "1000");
    theirs.base_url = moved.to_owned();
    let Ok(Accepted::Stored(theirs)) = new.post(theirs).await else {
        panic!("not stored");
    };
    for gate in [&old, &new] {
        let stats = gate.stats().await.unwrap();
        assert_eq!((stats.pending, stats.held), (2, 1));
    }
    let theirs_flight = flight(&new).await;
    assert_eq!(theirs_flight.delivery.id, theirs);
    assert_eq!(new.take(10).await.unwrap().next_in, None);
    assert_eq!(flight(&old).await.delivery.id, ours);

    // A transaction whose latest state is pinned elsewhere: the earlier one counts no more, and the
    // latest is left to whoever knows its account.
    let early = posting("c", "PENDING", "1000");
    assert_eq!(early.base_url, TIKI);
    old.post(early).await.unwrap();
    let early = flight(&old).await.delivery.id;
    let mut late = posting("c", "SUCCESS", "1000");
    late.base_url = moved.to_owned();
    let Ok(Accepted::Stored(late)) = new.post(late).await else {
        panic!("not stored");
    };
    hands.advance(FLIGHT);
    let taken = old.take(10).await.unwrap().flights;
    let ids: Vec<_> = taken.iter().map(|one| one.delivery.id).collect();
    assert_eq!(ids, [ours]);
    let superseded = old.get(early).await.unwrap().unwrap();
    assert_eq!(superseded.state, State::Superseded);
    let left = old.get(late).await.unwrap().unwrap();
    assert_eq!((left.flight, left.flying_until, left.tries), (0, None, 0));
    let taken = new.take(10).await.unwrap().flights;
    let mut ids: Vec<_> = taken.iter().map(|one| one.delivery.id).collect();
    ids.sort();
    assert_eq!(ids, [theirs, late]);
}

#[tokio::test]
async fn a_store_that_is_away_refuses_at_once_and_does_nothing_by_half() {
    let database = Database::take();
    let gate = gate(&database, &Setting::default(), None);
    let id = stored(&gate, "a").await;
    let taken = flight(&gate).await;
    let closed = format!("alter database {} with allow_connections false", database.0);
    Server::shared().query("postgres", &closed);
    // Of what the gate connected before that was in force, some may show only later.
    let cut = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'",
        database.0
    );
    // What goes by the last of its connections fails, too, and then nothing is asked of the server.
    let deadline = Instant::now() + PATIENCE;
    while gate.store.trouble().is_none() {
        assert!(Instant::now() < deadline, "it never noticed");
        Server::shared().query("postgres", &cut);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    let trouble = gate
        .post(posting("b", "SUCCESS", "1000"))
        .await
        .unwrap_err();
    assert!(!trouble.0.is_empty());
    assert!(gate.take(10).await.is_err());
    assert!(gate.record(taken.clone(), TAKEN).await.is_err());
    assert!(gate.give_back(vec![taken.clone()]).await.is_err());
    assert!(
        gate.to_tell(10).await.is_err() && gate.told(taken.delivery.clone(), true).await.is_err()
    );
    assert!(gate.get(id).await.is_err() && gate.list(Filter::default()).await.is_err());
    assert!(matches!(
        gate.word(id, retry()).await,
        Err(WordFault::Store(_))
    ));
    assert!(gate.stats().await.is_err() && gate.sweep(10).await.is_err());
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let back = format!("alter database {} with allow_connections true", database.0);
    Server::shared().query("postgres", &back);
    let kept = loop {
        assert!(Instant::now() < deadline, "it never came back");
        match gate.record(taken.clone(), TAKEN).await {
            Ok(kept) => break kept,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!((kept.state, kept.flight), (State::Delivered, 1));
    assert_eq!(gate.stats().await.unwrap().pending, 0);
    // Closed, as by the ledger at its end, it says so.
    gate.store.close();
    let closed = gate.stats().await.unwrap_err();
    assert!(closed.0.contains("closed"), "{closed}");
}

#[tokio::test]
async fn a_session_that_commits_less_safely_writes_nothing() {
    let database = Database::take();
    let gate = gate(&database, &Setting::default(), None);
    // As a pooler does that hands out sessions between transactions.
    let unsafe_sessions = (0..3).map(|_| {
        gate.store.run(async |session: &mut Session| {
            session.run("set synchronous_commit = off").await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        })
    });
    let mut setting = tokio::task::JoinSet::new();
    for session in unsafe_sessions {
        setting.spawn(session);
    }
    setting.join_all().await;
    let refused = gate
        .post(posting("a", "SUCCESS", "1000"))
        .await
        .unwrap_err();
    assert!(refused.0.contains("session mode"), "{refused}");
    assert!(gate.take(1).await.is_err());
    assert_eq!(
        database.query("select count(*) from tikigate.delivery"),
        "0"
    );
}

#[tokio::test]
async fn the_deliveries_of_a_promoted_standby_are_asked_about_first() {
    let primary = Server::start(&[]);
    let name = primary.create_database();
    let settings = |url: String| PostgresStore {
        url: Secret::new(url.into_bytes()),
        ca: None,
        connections: 3,
        lease: Duration::from_secs(600),
        require_existing: false,
    };
    let over = |server: &Server| {
        let Setting {
            policy,
            max_bytes,
            keep,
            pins,
        } = Setting::default();
        let store = Store::open(&settings(server.url(&name))).unwrap();
        PostgresOutbox::on(Arc::new(store), Terms::new(policy, max_bytes, keep, pins))
    };
    let gate = over(&primary);
    let id = stored(&gate, "a").await;
    let standby = primary.standby();
    // What happens now is not in the standby.
    let taken = flight(&gate).await;
    gate.record(taken, UNCLEAR).await.unwrap();
    gate.store.close();
    standby.promote();
    let gate = over(&standby);
    let deadline = Instant::now() + PATIENCE;
    let mut taken = Vec::new();
    while taken.is_empty() {
        assert!(Instant::now() < deadline, "it is never taken");
        taken = gate.take(10).await.unwrap_or_default().flights;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = &taken[0].delivery;
    assert_eq!(
        (again.id, again.step, again.maybe_taken),
        (id, Step::Ask, true)
    );
}
