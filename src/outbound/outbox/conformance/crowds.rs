//! Many at once, from two gates where two may.

use std::collections::HashSet;

use tokio::task::JoinSet;

use super::posting::all;
use super::*;

impl Fixture {
    fn gate(&self, number: usize) -> Arc<dyn Outbox> {
        match number % 2 {
            0 => Arc::clone(&self.outbox),
            _ => Arc::clone(&self.other),
        }
    }
}

pub(crate) async fn one_amount_wins(open: Open) {
    let f = open.one().await;
    let statuses = ["SUCCESS", "FAILURE", "PENDING"];
    for round in 0..5 {
        let name = format!("round {round}");
        let mut posting_all = JoinSet::new();
        for number in 0..32 {
            let outbox = f.gate(number);
            let amount = (1000 + number % 4).to_string();
            let posted = posting(&name, statuses[number % 3], &amount);
            posting_all.spawn(async move { (amount, outbox.post(posted).await.unwrap()) });
        }
        let answers = posting_all.join_all().await;
        let ours = Filter {
            transaction: Some(format!("T-{name}")),
            ..all()
        };
        let kept = f.outbox.list(ours).await.unwrap().deliveries;
        let won = &kept[0].amount;
        assert!(kept.iter().all(|one| one.amount == *won), "{kept:?}");
        for (amount, answer) in &answers {
            let accepted = !matches!(answer, Accepted::Conflict(..));
            assert!(
                !accepted || amount == won,
                "{amount}, not {won}: {answer:?}"
            );
        }
        let stored = answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Accepted::Stored(_)));
        assert_eq!(stored.count(), kept.len());
        let statuses: HashSet<_> = kept.iter().map(|one| &one.status).collect();
        assert_eq!(statuses.len(), kept.len());
        let places: HashSet<_> = kept.iter().map(|one| one.place).collect();
        assert_eq!(places.len(), kept.len());
        // All but the latest are superseded.
        let pending = kept.iter().filter(|one| one.state == State::Pending);
        assert_eq!(pending.count(), 1, "{kept:?}");
    }
}

pub(crate) async fn a_storm_of_takes_gives_nothing_twice(open: Open) {
    let f = open.one().await;
    let mut posted = HashSet::new();
    for number in 0..60 {
        posted.insert(f.paid(&number.to_string()).await);
    }
    let mut taking = JoinSet::new();
    for number in 0..16 {
        let outbox = f.gate(number);
        taking.spawn(async move {
            let mut taken = Vec::new();
            for _ in 0..4 {
                taken.extend(outbox.take(1 + number % 4).await.unwrap().flights);
            }
            taken
        });
    }
    let mut taken: Vec<_> = taking.join_all().await.into_iter().flatten().collect();
    taken.extend(f.take(100).await.flights);
    let distinct: HashSet<_> = taken.iter().map(|flight| flight.delivery.id).collect();
    assert_eq!(distinct.len(), taken.len());
    assert_eq!(distinct, posted);
    assert!(taken.iter().all(|flight| flight.delivery.flight == 1));
}

pub(crate) async fn posts_and_records_of_a_transaction_go_one_by_one(open: Open) {
    let f = open.one().await;
    for round in 0..10 {
        let name = round.to_string();
        let pending = f.stored(posting(&name, "PENDING", "1000")).await;
        let flight = f.flight().await;
        let mut all_at_once = JoinSet::new();
        for number in 0..6 {
            let (outbox, flight, name) = (f.gate(number), flight.clone(), name.clone());
            all_at_once.spawn(async move {
                match number {
                    0 | 1 => {
                        outbox.record(flight, UNCLEAR).await.unwrap();
                    }
                    2 | 3 => {
                        let posted = posting(&name, "SUCCESS", "1000");
                        outbox.post(posted).await.unwrap();
                    }
                    _ => {
                        // Whatever it says, it says it of one moment.
                        let _ = outbox.word(flight.delivery.id, word(true)).await;
                    }
                }
            });
        }
        all_at_once.join_all().await;
        f.hands.advance(Duration::from_secs(2));
        // The final status counts, whatever came first; and nothing else is tried.
        let last = f.flight().await;
        assert_eq!(last.delivery.status, "SUCCESS");
        assert_eq!(f.state(pending).await, State::Superseded);
        f.record(last, TAKEN).await;
    }
}

pub(crate) async fn the_sum_of_bytes_stays_true(open: Open) {
    let f = open.with_room_for(20).await;
    let mut working = JoinSet::new();
    for number in 0..8 {
        let outbox = f.gate(number);
        working.spawn(async move {
            for turn in 0..12 {
                let mut posted = posting(&format!("{number} {turn}"), "SUCCESS", "1000");
                posted.body = Bytes::from(vec![b' '; 7 * turn + number]);
                outbox.post(posted).await.unwrap();
                for flight in outbox.take(2).await.unwrap().flights {
                    outbox.record(flight, TAKEN).await.unwrap();
                }
                outbox.sweep(1).await.unwrap();
            }
        });
    }
    working.join_all().await;
    let (kept, should) = f.bytes().await;
    assert_eq!(kept, should);
    let room = 20 * (OVERHEAD + BODY.len()) as u64;
    // Each of the tasks may have had one in flight beyond the quota.
    assert!(kept <= room + 8 * (OVERHEAD + 100) as u64, "{kept}");
}
