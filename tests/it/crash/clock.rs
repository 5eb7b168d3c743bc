//! The wall clock an hour off, and back: nothing is sent twice, nothing is forgotten early, and what is out
//! of its time window is told to come again.

use std::time::Duration;

use super::bench::Bench;
use super::journal::Event;
use super::killing::scaled;
use super::world::{Death, Plan, SQLITE, World, set_clock};
use crate::support::random::{self, Random};

const HOUR: i64 = 3600;
/// A gate has seen a change of its clock after this.
const SEEN_WITHIN: Duration = Duration::from_millis(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_off_new_refunds_wait_and_old_ones_are_answered() {
    let bench = Bench::new(SQLITE).await;
    let gate = bench.start().await;
    assert_eq!(gate.refund("r-before").await.status, 200);
    let dated = (503, "out_of_window".to_owned());
    for (number, offset) in [HOUR, -HOUR].into_iter().enumerate() {
        let key = format!("r-{number}");
        set_clock(&bench.setup, offset);
        tokio::time::sleep(SEEN_WITHIN).await;
        for _ in 0..2 {
            assert_eq!(gate.told(&key).await, dated, "{offset}");
        }
        assert_eq!(gate.refund("r-before").await.status, 200, "{offset}");
        assert_eq!((bench.sent(&key), bench.sent("r-before")), (0, 1));
        set_clock(&bench.setup, 0);
        tokio::time::sleep(SEEN_WITHIN).await;
        assert_eq!(gate.refund(&key).await.status, 200);
        assert_eq!(bench.sent(&key), 1);
    }
}

/// Lives and deaths while the clock jumps to and fro, before a start and in the middle of a life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_clock_does_each_refund_is_sent_once_and_answered_the_same() {
    let seed = random::seed("clock");
    let world = World::new(Plan::of_one(seed, SQLITE)).await;
    let mut random = Random::part(seed, &[5]);
    for _ in 0..scaled(30) {
        world.set_clock(*random.pick(&[0, 0, 0, HOUR, -HOUR]));
        let (setup, offset) = (world.setup.clone(), *random.pick(&[0, HOUR, -HOUR]));
        let wait = random.millis(0, 200);
        let jump = move || {
            std::thread::sleep(wait);
            set_clock(&setup, offset);
        };
        world
            .live(Death::After(random.below(60), random.millis(0, 3)), jump)
            .await;
    }
    world.set_clock(0);
    let journal = world.journal.clone();
    let faults = world.reckon(Duration::ZERO).await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let out_of_window = |event: &Event| matches!(event, Event::Answer { answer, .. } if answer.code.as_deref() == Some("out_of_window"));
    let histories = journal.histories();
    let times = histories
        .values()
        .flatten()
        .filter(|event| out_of_window(event))
        .count();
    println!(
        "clock: {} refunds, {times} calls were out of their window",
        histories.len()
    );
    assert!(times > 0, "the gate never saw its clock move");
}
