//! Random histories against a Tiki that knows what it took.

use proptest::prelude::*;

use super::*;

/// One thing that happens in a random history.
#[derive(Clone, Debug)]
enum Happening {
    Post(u8),
    /// Tiki takes it or not, and its answer arrives or not; with a code where it refuses.
    Try {
        arrives: bool,
        answers: u8,
    },
    /// The process dies in the middle of a try, before or after Tiki had it.
    Die {
        arrived: bool,
    },
    Word {
        which: u8,
        retry: bool,
    },
    Restore,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        2 => (0..4_u8).prop_map(Happening::Post),
        8 => (any::<bool>(), 0..8_u8).prop_map(|(arrives, answers)| Happening::Try { arrives, answers }),
        2 => any::<bool>().prop_map(|arrived| Happening::Die { arrived }),
        1 => (1..4_u8, any::<bool>()).prop_map(|(which, retry)| Happening::Word { which, retry }),
        1 => Just(Happening::Restore),
    ];
    prop::collection::vec(one, 1..60)
}

const STATUSES: [Option<&str>; 4] = [Some("PENDING"), Some("SUCCESS"), Some("FAILURE"), None];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens: a refund is only said of what Tiki did not take, what Tiki is sent of one
    /// transaction never goes back to an earlier posting, and no two tries of it are on their way.
    #[test]
    fn no_history_ends_in_a_refund_of_what_was_taken(history in happenings()) {
        let mut bench = Bench::new();
        // What Tiki has of the transaction, and which postings it took.
        let mut tikis: Option<TransactionStatus> = None;
        let mut took: Vec<DeliveryId> = Vec::new();
        let mut last_place_sent = 0;
        for happening in history {
            match happening {
                Happening::Post(which) => {
                    bench.post(STATUSES[which as usize], "1000");
                }
                Happening::Restore => bench.generation += 1,
                Happening::Word { which, retry } => {
                    let _ = bench.word(u64::from(which), retry);
                }
                Happening::Try { .. } | Happening::Die { .. } => {
                    bench.now += Duration::from_secs(7);
                    let tidings = bench.tidings();
                    let Some(index) = rules::take(&mut bench.deliveries, tidings) else { continue };
                    let flying = bench.deliveries.iter().filter(|one| one.flying_until.is_some());
                    prop_assert_eq!(flying.count(), 1);
                    let taken = bench.deliveries[index].clone();
                    let status = taken.expected().unwrap().status;
                    if taken.step == Step::Send {
                        prop_assert!(taken.place >= last_place_sent);
                        last_place_sent = taken.place;
                    }
                    let (arrives, answers) = match happening {
                        Happening::Try { arrives, answers } => (arrives, answers),
                        _ => (matches!(happening, Happening::Die { arrived: true }), 7),
                    };
                    if taken.step == Step::Send && arrives {
                        tikis = Some(status);
                        took.push(taken.id);
                    }
                    if matches!(happening, Happening::Die { .. }) {
                        bench.now += rules::FLIGHT;
                        continue;
                    }
                    let report = match (taken.step, arrives, answers) {
                        (Step::Ask, _, 6..) => Report::Asked(Asked::Nothing(String::new())),
                        (Step::Ask, ..) => Report::Asked(match tikis {
                            None => Asked::Refused(ReplyCode::NotFound),
                            Some(is) if is == status => Asked::Same,
                            Some(TransactionStatus::Pending) => Asked::Pending(seen(TransactionStatus::Pending)),
                            Some(is) if status == TransactionStatus::Pending => Asked::Later(seen(is)),
                            Some(is) => Asked::Other(seen(is)),
                        }),
                        (Step::Send, _, 6) => lost(),
                        (Step::Send, true, 7) => UNCLEAR,
                        (Step::Send, true, _) => TAKEN,
                        (Step::Send, false, 0) if !took.contains(&taken.id) => not_sent(),
                        // It is refused, perhaps because it was taken before.
                        (Step::Send, false, code) => refused(FINAL[code as usize % FINAL.len()]),
                    };
                    let recorded = bench.record((taken.id, taken.flight, taken.step), report);
                    let refund = recorded.state == State::Failed && recorded.means_refund();
                    prop_assert!(!(refund && tikis == Some(status)), "{recorded:?}");
                }
            }
        }
    }
}
