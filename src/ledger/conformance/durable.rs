//! What a store that outlives its process keeps.

use std::sync::Mutex;

use http::HeaderName;

use super::*;

const ENDS: [End; 2] = [End::Closed, End::Killed];

/// Everything that the store says of a record.
async fn told(f: &Fixture, id: RecordId) -> String {
    let record = f.ledger.get(id).await.unwrap();
    let events = f.ledger.events(id).await.unwrap();
    let request = f.ledger.request(id).await.unwrap();
    let headers = request.as_ref().map(|request| &request.headers);
    let body = request.as_ref().map(|request| &request.body);
    format!("{record:#?} {events:#?} {headers:?} {body:?}")
}

fn calling(message: &str) -> Claim {
    let headers = [
        ("traceparent", &b"00-7-7-01"[..]),
        ("accept", b"caf\xe9, \xff"),
    ];
    let headers = headers.into_iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_bytes(value).unwrap(),
        )
    });
    Claim {
        request: Some(KeptRequest {
            headers: headers.collect(),
            body: every_byte(70_000),
        }),
        fields: Fields(
            [
                ("transaction_id".into(), format!("T-{message}")),
                (
                    "note".into(),
                    "hoàn tiền \u{1f4b8} \"'\\ \u{0}%_".to_owned(),
                ),
                ("empty".into(), String::new()),
            ]
            .into(),
        ),
        ..refund(message)
    }
}

fn every_byte(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8).collect()
}

pub(crate) async fn what_was_kept_survives(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        let mut ids = Vec::new();
        let second = Duration::from_micros(1_234_567);
        let mut step = async |claim: Claim, settlement| {
            f.hands.advance(second);
            let fence = f.granted(claim).await;
            f.hands.advance(second);
            f.settle(fence, settlement).await;
            ids.push(fence.record);
        };
        step(calling("released"), not_applied()).await;
        step(calling("released"), not_applied()).await;
        step(calling("unknown"), cannot_say()).await;
        step(calling("done"), success()).await;
        step(calling("declined"), declined()).await;
        step(notice("given up"), cannot_say()).await;
        let odd = Claim {
            keep: Duration::from_secs(3),
            may_run_for: Duration::from_millis(1500),
            route: "tuyến \u{1f6e3}".into(),
            key: Key {
                namespace: "không gian".into(),
                client: "ví".into(),
                message: "hoàn-1 \u{1f4b8}\u{301}".into(),
            },
            fingerprint: Fingerprint(std::array::from_fn(|at| at as u8 ^ 0xa5)),
            owner: Owner(u64::MAX),
            ..refund("")
        };
        step(odd, cannot_say()).await;
        for (message, verdict) in [
            ("applied", Verdict::Applied(answer(200, "by hand"))),
            ("rejected", Verdict::Rejected(answer(500, "by hand"))),
            ("not applied", Verdict::NotApplied),
        ] {
            let fence = f.settled(calling(message), cannot_say()).await;
            f.resolve_by_force(fence.record, verdict).await.unwrap();
            ids.push(fence.record);
        }
        let (first, second) = f.claimed_twice("alarmed").await;
        f.settle(first, success()).await;
        f.settle(second, cannot_say()).await;
        ids.push(first.record);

        let mut before = Vec::new();
        for id in &ids {
            before.push(told(&f, *id).await);
        }
        let all = Filter {
            limit: LIST_LIMIT,
            ..Filter::default()
        };
        let listed = format!("{:?}", f.ledger.list(all.clone()).await.unwrap());
        let stats = f.ledger.stats().await.unwrap();
        for _ in 0..2 {
            assert_eq!(f.restart(end).await, 0, "{end:?}");
            for (id, before) in ids.iter().zip(&before) {
                assert_eq!(&told(&f, *id).await, before, "{end:?}");
            }
            let now = f.ledger.list(all.clone()).await.unwrap();
            assert_eq!(format!("{now:?}"), listed, "{end:?}");
            assert_eq!(f.ledger.stats().await.unwrap(), stats, "{end:?}");
        }
    }
}

pub(crate) async fn answers_survive_byte_for_byte(open: Open) {
    let many = (0..100).map(|number| {
        (
            HeaderName::from_static("x-many"),
            HeaderValue::from_str(&number.to_string()).unwrap(),
        )
    });
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).unwrap();
    let opaque: Vec<u8> = (0x80..=0xff).collect();
    let headers = [
        ("x-opaque", value(&opaque)),
        ("x-text", value("đã hoàn \"tiền\" \\".as_bytes())),
        ("x-empty", value(b"")),
        ("x-tab", value(b"a\tb")),
        ("x-long", value(&[b'x'; 8192])),
    ];
    let headers = headers
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), value));
    let odd = KeptAnswer {
        status: StatusCode::from_u16(299).unwrap(),
        headers: headers.chain(many).collect(),
        body: every_byte(64 << 10),
    };
    let bare = KeptAnswer {
        status: StatusCode::NO_CONTENT,
        headers: Vec::new(),
        body: Bytes::new(),
    };
    let text = KeptAnswer {
        body: Bytes::from_static(b"{\"a\":\"\\u0000\"}\r\n\0"),
        ..answer(410, "")
    };
    for end in ENDS {
        let mut f = open.one().await;
        let kept = [("a", &odd), ("b", &bare), ("c", &text)];
        for (message, kept) in kept {
            let settlement = Settlement::Done(kept.clone(), "success".into());
            f.settled(refund(message), settlement).await;
        }
        f.restart(end).await;
        for (message, kept) in kept {
            let given = f.claim(refund(message)).await;
            assert_is!(given, ClaimOutcome::Done(_, given) if given == *kept);
        }
    }
}

pub(crate) async fn claims_of_the_dead_are_ended(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        let held = f.granted(calling("a")).await;
        let resent = f.granted(notice("b")).await;
        let alarmed = f.claimed_twice("c").await;
        f.settle(alarmed.0, success()).await;
        let done = f.settled(refund("d"), success()).await;
        assert_eq!(f.restart(end).await, 3, "{end:?}");
        let expected = [
            (held, State::Unknown),
            (resent, State::Released),
            (alarmed.0, State::Unknown),
        ];
        for (fence, state) in expected {
            assert_eq!(f.state(fence.record).await, state);
            assert_eq!(f.last_cause(fence.record).await, "owner_lapsed");
            assert_is!(f.ledger.permit(fence).await, Err(PermitError::Fenced));
        }
        assert_eq!(f.state(done.record).await, State::Done);
        assert_eq!(f.ledger.stats().await.unwrap().records, [0, 1, 1, 2]);
        assert_is!(
            f.claim(refund("a")).await,
            ClaimOutcome::Held(_, Hold::OutcomeUnknown)
        );
        // A person may still want it sent.
        assert!(f.ledger.request(held.record).await.unwrap().is_some());
        assert_eq!(f.granted(notice("b")).await.attempt, 2);
        assert_eq!(f.restart(end).await, 1);
        assert_eq!(f.restart(end).await, 0);
    }
}

pub(crate) async fn what_only_the_rules_know_survives(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        // Given up, and given up before.
        f.settled(notice("given up"), cannot_say()).await;
        f.settled(notice("before"), cannot_say()).await;
        f.settled(notice("before"), not_applied()).await;
        // Proven afterwards: a release like any other.
        let proven = f.settled(notice("proven"), cannot_say()).await;
        f.settle(proven, not_applied()).await;
        // Declared: a late decline changes nothing, a late success does.
        let mut declared = Vec::new();
        for message in ["declared", "declared and right"] {
            let fence = f.settled(refund(message), cannot_say()).await;
            f.resolve_by_force(fence.record, Verdict::NotApplied)
                .await
                .unwrap();
            declared.push(fence);
        }
        // A longer time to keep than this claim's own.
        let kept = f.granted(refund("kept")).await;
        let longer = Claim {
            keep: 2 * KEEP,
            ..refund("kept")
        };
        f.claim(longer).await;
        f.settle(kept, not_applied()).await;

        f.restart(end).await;
        for message in ["given up", "before"] {
            assert_is!(
                f.claim(refund(message)).await,
                ClaimOutcome::Held(_, Hold::OutcomeUnknown)
            );
        }
        assert_eq!(f.granted(refund("proven")).await.attempt, 2);
        assert_eq!(
            f.settle(declared[0], declined()).await,
            Settled::Superseded(State::Released)
        );
        assert_eq!(
            f.settle(declared[1], success()).await,
            Settled::Recorded(State::Done)
        );
        let kept = f.settled(refund("kept"), success()).await;
        let expires_at = f.record(kept.record).await.expires_at;
        assert_eq!(expires_at, f.now() + 2 * KEEP);
    }
}

pub(crate) async fn words_can_still_be_taken_back(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        let verdicts = [
            Verdict::Applied(answer(200, "by hand")),
            Verdict::Rejected(answer(500, "by hand")),
            Verdict::NotApplied,
        ];
        let mut fences = Vec::new();
        for (number, verdict) in verdicts.into_iter().enumerate() {
            let fence = f.settled(refund(&number.to_string()), cannot_say()).await;
            f.resolve_by_force(fence.record, verdict).await.unwrap();
            fences.push(fence);
        }
        // A word that an unsent attempt came after.
        let (_, second) = f.claimed_twice("3").await;
        f.settle(second, not_applied()).await;
        fences.push(second);
        let own = f.settled(refund("own"), success()).await;

        f.restart(end).await;
        for fence in &fences {
            f.reopen(fence.record).await.unwrap();
        }
        assert_is!(f.reopen(own.record).await, Err(ResolveError::NotDeclared));

        f.restart(end).await;
        for fence in fences {
            // Only a person ends it now.
            assert_eq!(
                f.settle(fence, not_applied()).await,
                Settled::Recorded(State::Unknown)
            );
            let seen = Seen::Applied(answer(200, "seen"));
            let record = f.sighted(fence.record, seen).await.unwrap();
            assert_eq!(record.state, State::Unknown);
        }
    }
}

pub(crate) async fn sightings_survive(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        let fence = f.settled(refund("a"), cannot_say()).await;
        f.hands.advance(MAY_RUN);
        f.sighted(fence.record, Seen::NotApplied).await.unwrap();
        f.restart(end).await;
        f.hands.advance(SIGHTING_PAUSE);
        let record = f.sighted(fence.record, Seen::NotApplied).await.unwrap();
        assert_eq!(record.state, State::Released);
        // Once in its life.
        f.settled(refund("a"), cannot_say()).await;
        f.restart(end).await;
        for _ in 0..3 {
            f.hands.advance(MAY_RUN);
            let record = f.sighted(fence.record, Seen::NotApplied).await.unwrap();
            assert_eq!(record.state, State::Unknown);
        }
    }
}

pub(crate) async fn subjects_survive(open: Open) {
    let tick = Duration::from_micros(1);
    for end in ENDS {
        let mut f = open.one().await;
        let newest = f.now() - DAY + tick;
        let earlier = newest - tick;
        f.settled(event("newest", newest, false), success()).await;
        let dropped = event("dropped", earlier, true);
        assert_is!(f.claim(dropped.clone()).await, ClaimOutcome::Dropped(..));
        f.settled(payment("first", true), cannot_say()).await;
        let second = f.held(payment("second", true)).await;
        let third = f.held(payment("third", true)).await;
        f.resolve(third, Verdict::NotApplied).await.unwrap();

        f.restart(end).await;
        assert_eq!(f.marks(event("same", newest, true)).await, Marks::default());
        assert!(f.marks(event("stale", earlier, false)).await.stale_event);
        assert_is!(f.claim(dropped).await, ClaimOutcome::Done(..));
        assert_is!(
            f.claim(payment("second", true)).await,
            ClaimOutcome::Held(_, Hold::PossibleDuplicate)
        );
        assert_is!(
            f.sighted(second, Seen::NotApplied).await,
            Err(ResolveError::NeverSent)
        );
        // A person let this one pass.
        let marks = f.marks(payment("third", true)).await;
        assert!(marks.possible_duplicate);
        assert!(f.record(third).await.marks.possible_duplicate);
    }
}

pub(crate) async fn quarantine_and_generation_survive(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        f.settled(refund("before"), not_applied()).await;
        f.quarantined().await;
        let gap = f.held(refund("gap")).await;
        let answered = f.held(refund("answered")).await;
        let applied = Verdict::Applied(answer(200, "by hand"));
        f.resolve(answered, applied).await.unwrap();

        f.restart(end).await;
        assert_eq!(
            f.ledger.quarantine().await.unwrap().as_deref(),
            Some("restored from a backup")
        );
        for message in ["before", "gap", "new"] {
            assert_is!(
                f.claim(refund(message)).await,
                ClaimOutcome::Held(_, Hold::LedgerGap)
            );
        }
        // The word taken back, it is the gap that it was.
        let record = f.reopen(answered).await.unwrap();
        assert_eq!(record.hold, Some(Hold::LedgerGap));
        f.hands.advance(MAY_RUN);
        f.resolve(gap, Verdict::NotApplied).await.unwrap();
        f.settled(refund("gap"), not_applied()).await;

        f.restart(end).await;
        // Claimed in this generation: nothing about it was forgotten.
        f.settled(refund("gap"), not_applied()).await;
        f.lifted().await;

        f.restart(end).await;
        assert_eq!(f.ledger.quarantine().await.unwrap(), None);
        f.settled(refund("after"), not_applied()).await;
        f.quarantined().await;
        // The next quarantine is another generation, though one was lifted in between.
        for message in ["gap", "after"] {
            assert_is!(
                f.claim(refund(message)).await,
                ClaimOutcome::Held(_, Hold::LedgerGap)
            );
        }
    }
}

pub(crate) async fn ids_are_never_given_again(open: Open) {
    for end in ENDS {
        let mut f = open.one().await;
        let mut last = RecordId(0);
        for round in 0..4 {
            let fence = f.settled(refund(&round.to_string()), success()).await;
            assert!(fence.record > last, "{end:?}");
            last = fence.record;
            f.hands.advance(KEEP);
            assert_eq!(f.ledger.sweep(10).await.unwrap(), 1);
            f.restart(end).await;
            assert_is!(
                f.settle(fence, success()).await,
                Settled::Superseded(State::Done)
            );
        }
    }
}

pub(crate) async fn definitions_survive(open: Open) {
    let definition = |key: &str| Definition {
        key: key.to_owned(),
        fingerprint: "/amount".to_owned(),
    };
    for end in ENDS {
        let mut f = open.one().await;
        let namespace: Arc<str> = "refund".into();
        let define = |f: &Fixture, key| f.ledger.define(Arc::clone(&namespace), definition(key));
        define(&f, "/request_id").await.unwrap();
        f.restart(end).await;
        assert_is!(define(&f, "/id").await, Err(DefineError::Disagrees { stored })
            if stored == definition("/request_id"));
        define(&f, "/request_id").await.unwrap();
    }
}

/// What callers were told, in the order in which they were.
#[derive(Default)]
struct Heard {
    granted: Vec<Fence>,
    done: Vec<(String, KeptAnswer)>,
}

pub(crate) async fn what_was_replied_survives_a_kill(open: Open) {
    let mut f = open.one().await;
    for round in 0..5_u64 {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let ledger = Arc::clone(&f.ledger);
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let (ledger, heard) = (Arc::clone(&ledger), Arc::clone(&heard));
                tokio::spawn(async move {
                    for number in 0.. {
                        let message = format!("{round} {caller} {number}");
                        call(&*ledger, &heard, message).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        drop(ledger);
        while heard.lock().unwrap().done.len() < 40 {
            tokio::task::yield_now().await;
        }
        // Killed in the middle of their calls. What the old store replies from here on, nobody hears.
        let heard = std::mem::take(&mut *heard.lock().unwrap());
        f.restart(End::Killed).await;
        for caller in callers {
            caller.abort();
            let _ = caller.await;
        }
        for fence in &heard.granted {
            let record = f.record(fence.record).await;
            assert_eq!((record.owner, record.attempt), (ONE, 1));
            assert_ne!(record.state, State::Claimed);
        }
        for (message, kept) in &heard.done {
            let given = f.claim(refund(message)).await;
            assert_is!(given, ClaimOutcome::Done(_, given) if given == *kept);
        }
    }
}

async fn call(ledger: &dyn Ledger, heard: &Mutex<Heard>, message: String) {
    let claimed = ledger.claim(refund(&message)).await;
    let Ok(ClaimOutcome::Granted(fence, _)) = claimed else {
        return; // the store has ended
    };
    heard.lock().unwrap().granted.push(fence);
    let kept = KeptAnswer {
        body: message.clone().into(),
        ..answer(200, "")
    };
    let settlement = Settlement::Done(kept.clone(), "success".into());
    if ledger.settle(fence, settlement).await.is_ok() {
        heard.lock().unwrap().done.push((message, kept));
    }
}

pub(crate) async fn many_lives_keep_the_counts(open: Open) {
    let mut f = open.one().await;
    let mut expected = [0; 4];
    for life in 0..12 {
        let message = |name: &str| format!("{name} {life}");
        f.granted(refund(&message("claimed"))).await;
        f.granted(notice(&message("claimed notice"))).await;
        f.settled(refund(&message("released")), not_applied()).await;
        f.settled(refund(&message("done")), success()).await;
        f.settled(refund(&message("unknown")), cannot_say()).await;
        f.hands.advance(KEEP / 4);
        let swept = f.ledger.sweep(10).await.unwrap();
        let end = ENDS[life % 2];
        assert_eq!(f.restart(end).await, 2);
        expected[State::Released as usize] += 2;
        expected[State::Done as usize] += 1;
        expected[State::Done as usize] -= swept;
        expected[State::Unknown as usize] += 2;
        let stats = f.ledger.stats().await.unwrap();
        assert_eq!(stats.records, expected, "{life} {end:?}");
        let oldest = stats.oldest[State::Unknown as usize];
        assert_eq!(oldest, KEEP / 4 * (life as u32 + 1));
    }
}
