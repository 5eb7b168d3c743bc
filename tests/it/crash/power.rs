//! Power losses, disks that fail and disks that lie: what `kill -9` can't show, since what a killed
//! process wrote lives on in the page cache.

use std::sync::Arc;
use std::time::Duration;

use super::killing::{SQLITE_STEPS, scaled};
use super::world::{Death, Plan, QUARANTINED, SQLITE, World};
use crate::support::disk::{Disk, Number};
use crate::support::random::{self, Random};

/// Lives of a gate in a usual run.
const LIVES: u64 = 60;

/// What a disk does while a gate lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    /// It keeps what was synced.
    Honest,
    /// Now and then a sync fails.
    Failing,
    /// Now and then it is full for a moment.
    Full,
    /// It says that it synced the log, and didn't.
    LiesAboutTheLog,
    /// It says that it synced, and didn't.
    LiesAboutAll,
}

/// Lives with power losses between them. Returns the faults.
async fn losses(of: &'static str, temper: Temper, lives: u64) -> Vec<String> {
    let seed = random::seed(of);
    let world = World::new(Plan::of_one(seed, SQLITE)).await;
    let disk = Arc::clone(world.disk.as_ref().unwrap());
    let lie = match temper {
        Temper::LiesAboutTheLog => 1,
        Temper::LiesAboutAll => 2,
        Temper::Honest | Temper::Failing | Temper::Full => 0,
    };
    disk.tell(Number::LieAbout, lie);
    let mut random = Random::part(seed, &[4]);
    let mut lost = 0;
    // A ledger that was never there whole can't be lost.
    world.live(Death::After(0, Duration::ZERO), || ()).await;
    for _ in 0..lives {
        let death = if random.chance(40) {
            let step = *random.pick(&SQLITE_STEPS);
            Death::At(step, 1 + random.below(10))
        } else {
            Death::by_chance(&mut random)
        };
        let (told, mut chance) = (Arc::clone(&disk), Random::seeded(random.next()));
        world
            .live(death, move || trouble(temper, &told, &mut chance))
            .await;
        for number in [Number::FailSyncs, Number::PassSyncs, Number::NoSpace] {
            disk.tell(number, 0);
        }
        // Sometimes the next gate finds what the dead one wrote and did not sync: what it takes for
        // true then may be gone later.
        match random.below(3) {
            0 => continue,
            1 if lie == 0 => disk.lose_power(Some(&mut random)),
            _ => disk.lose_power(None),
        }
        lost += 1;
    }
    println!(
        "{of}: {lost} power losses, {} syncs, {} calls failed",
        disk.told(Number::Syncs),
        disk.told(Number::Failed)
    );
    assert!(disk.told(Number::Syncs) > 0, "the gate is not on the disk");
    world.reckon(Duration::ZERO).await
}

fn trouble(temper: Temper, disk: &Disk, random: &mut Random) {
    let soon = u32::try_from(random.below(20)).unwrap();
    match temper {
        Temper::Failing => {
            disk.tell(Number::LoseDirty, u32::from(random.chance(50)));
            disk.tell(Number::PassSyncs, soon);
            disk.tell(Number::FailSyncs, 1 + soon % 3);
        }
        Temper::Full => {
            std::thread::sleep(random.millis(0, 60));
            disk.tell(Number::NoSpace, 1);
            std::thread::sleep(random.millis(0, 100));
            disk.tell(Number::NoSpace, 0);
        }
        Temper::Honest | Temper::LiesAboutTheLog | Temper::LiesAboutAll => {}
    }
}

fn money_moved_twice(faults: &[String]) -> bool {
    faults.iter().any(|fault| fault.contains("money moved"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_power_loss_takes_each_refund_is_sent_once_and_answered_the_same() {
    let faults = losses("power loss", Temper::Honest, scaled(LIVES)).await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_syncs_fail_each_refund_is_sent_once_and_answered_the_same() {
    let faults = losses("failing syncs", Temper::Failing, scaled(LIVES)).await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_disk_is_full_each_refund_is_sent_once_and_answered_the_same() {
    let faults = losses("full disk", Temper::Full, scaled(LIVES)).await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The watermark knows what the log lost. Answers are lost with it, and refunds are held that were
/// answered; none is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_the_log_moves_no_money_twice() {
    let faults = losses("lies about the log", Temper::LiesAboutTheLog, 20).await;
    assert!(!money_moved_twice(&faults), "{}", faults.join("\n"));
    let noticed = faults.iter().any(|fault| fault.starts_with(QUARANTINED));
    assert!(noticed, "the loss was not noticed: {}", faults.join("\n"));
}

/// What shows that the harness sees anything at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_everything_moves_money_twice() {
    let faults = losses("lies about all", Temper::LiesAboutAll, 20).await;
    assert!(money_moved_twice(&faults), "no fault was seen");
}
