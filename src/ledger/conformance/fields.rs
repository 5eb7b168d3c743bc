//! What people find records by, and the calls that they may send again.

use http::HeaderName;

use super::*;

fn all() -> Filter {
    Filter {
        limit: 100,
        ..Filter::default()
    }
}

/// What a filter finds over all pages; each page keeps to the limit and to the order.
async fn found(f: &Fixture, filter: Filter) -> Vec<RecordId> {
    let mut ids = Vec::new();
    let mut after = None;
    for _ in 0..1000 {
        let filter = Filter {
            after,
            ..filter.clone()
        };
        let limit = filter.limit;
        let page = f.ledger.list(filter).await.unwrap();
        assert!(page.records.len() <= limit);
        ids.extend(page.records.iter().map(|record| record.id));
        if let (Some(next), Some(last)) = (page.next, page.records.last()) {
            assert!(next >= last.id);
        }
        let Some(next) = page.next else {
            assert!(ids.is_sorted_by(|one, other| one < other), "{ids:?}");
            return ids;
        };
        assert!(Some(next) > after, "a page that goes nowhere");
        after = Some(next);
    }
    panic!("no end of pages");
}

fn with_fields(message: &str, fields: &[(&'static str, &str)]) -> Claim {
    let fields = fields.iter();
    let fields = fields.map(|(name, text)| ((*name).into(), (*text).to_owned()));
    Claim {
        fields: Fields(fields.collect()),
        ..refund(message)
    }
}

pub(crate) async fn fields_are_kept_as_they_came(open: Open) {
    let f = open.one().await;
    let odd = [
        ("transaction_id", "T-1"),
        ("amount", "150000.50"),
        ("order.id", "\"hoàn\"\n\t\\ \u{0}\u{1f4b8}"),
        ("empty", ""),
        ("z", "a"),
        ("a", "z"),
    ];
    let claim = with_fields("a", &odd);
    let fence = f.granted(claim.clone()).await;
    assert_eq!(f.record(fence.record).await.fields, claim.fields);
    // A message is what it was when it came first.
    f.settle(fence, not_applied()).await;
    let other = with_fields("a", &[("transaction_id", "T-2")]);
    f.settled(other, cannot_say()).await;
    assert_eq!(f.record(fence.record).await.fields, claim.fields);
    let listed = f.ledger.list(all()).await.unwrap().records;
    assert_eq!(listed[0].fields, claim.fields);
    let bare = f.granted(refund("b")).await;
    assert_eq!(f.record(bare.record).await.fields, Fields::default());
}

pub(crate) async fn records_are_found_by_a_field(open: Open) {
    let f = open.one().await;
    let id = |claim| async { f.granted(claim).await.record };
    let first = id(with_fields(
        "a",
        &[("transaction_id", "T-1"), ("order.id", "7")],
    ))
    .await;
    let second = id(with_fields("b", &[("transaction_id", "T-12")])).await;
    let third = id(with_fields("c", &[("order.id", "T-1")])).await;
    let fourth = id(with_fields("d", &[("note", "100% \"ok\\_\"")])).await;
    let accented = id(with_fields("e", &[("note", "hoàn tiền")])).await;
    id(with_fields("T-1", &[])).await;
    let by = |text: &str| Filter {
        reference: Some(text.to_owned()),
        ..all()
    };
    let cases = [
        ("T-1", vec![first, third]),
        ("T-12", vec![second]),
        ("7", vec![first]),
        ("100% \"ok\\_\"", vec![fourth]),
        ("hoàn tiền", vec![accented]),
        // Exactly, and the text alone.
        ("T-", vec![]),
        ("t-1", vec![]),
        ("T-1 ", vec![]),
        ("100%", vec![]),
        ("transaction_id", vec![]),
        ("%", vec![]),
        ("", vec![]),
        ("\"", vec![]),
        ("T-1\",\"7", vec![]),
    ];
    for (text, ids) in cases {
        assert_eq!(found(&f, by(text)).await, ids, "{text:?}");
    }
    // A field without a text is no name for anything, but can be asked for.
    let empty = id(with_fields("f", &[("empty", "")])).await;
    assert_eq!(found(&f, by("")).await, [empty]);
    // Whatever becomes of the record.
    let fence = f.running(refund("a")).await;
    f.settle(fence, success()).await;
    assert_eq!(found(&f, by("7")).await, [first]);
}

pub(crate) async fn records_are_found_by_their_time(open: Open) {
    let f = open.one().await;
    let start = f.now();
    let step = Duration::from_millis(1500);
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(f.granted(refund(&number.to_string())).await.record);
        f.hands.advance(step);
    }
    // When it came first counts, not what became of it.
    f.settle(f.running(refund("0")).await, not_applied()).await;
    f.granted(refund("0")).await;
    let between = |from: Option<u32>, until: Option<u32>| Filter {
        created_from: from.map(|steps| start + steps * step),
        created_until: until.map(|steps| start + steps * step),
        ..all()
    };
    assert_eq!(found(&f, between(Some(2), None)).await, ids[2..]);
    assert_eq!(found(&f, between(None, Some(2))).await, ids[..2]);
    assert_eq!(found(&f, between(Some(1), Some(4))).await, ids[1..4]);
    assert!(found(&f, between(Some(3), Some(3))).await.is_empty());
    assert!(found(&f, between(Some(4), Some(1))).await.is_empty());
    assert!(found(&f, between(Some(6), None)).await.is_empty());
    let just_after = Filter {
        created_from: Some(start + step + Duration::from_micros(1)),
        ..all()
    };
    assert_eq!(found(&f, just_after).await, ids[2..]);
    let far = |at| Filter {
        created_from: Some(at),
        ..all()
    };
    assert_eq!(found(&f, far(SystemTime::UNIX_EPOCH)).await, ids);
    assert!(
        found(&f, far(start + 100_000 * DAY)).await.is_empty(),
        "far off"
    );
}

pub(crate) async fn records_are_found_by_their_key(open: Open) {
    let f = open.one().await;
    let first = f.granted(refund("R-1")).await.record;
    f.granted(refund("R-12")).await;
    f.granted(refund("r-1")).await;
    let other = Claim {
        key: Key {
            client: "other".into(),
            ..refund("R-1").key
        },
        ..refund("R-1")
    };
    let other = f.granted(other).await.record;
    let by = |key: &str| Filter {
        key: Some(key.to_owned()),
        ..all()
    };
    assert_eq!(found(&f, by("R-1")).await, [first, other]);
    for key in ["R-", "R-1 ", "", "%"] {
        assert!(found(&f, by(key)).await.is_empty(), "{key:?}");
    }
    let unknown = Filter {
        state: Some(State::Unknown),
        ..by("R-1")
    };
    assert!(found(&f, unknown).await.is_empty());
}

pub(crate) async fn filters_hold_together_and_pages_go_on(open: Open) {
    let f = open.one().await;
    let start = f.now();
    let mut expected = Vec::new();
    for number in 0..120_u32 {
        let field = if number % 2 == 0 { "even" } else { "odd" };
        let claim = with_fields(&format!("R-{number:03}"), &[("parity", field)]);
        let claim = Claim {
            route: if number % 3 == 0 { "third" } else { "refund" }.into(),
            ..claim
        };
        let fence = f.granted(claim).await;
        if number % 5 != 0 {
            f.settle(fence, cannot_say()).await;
        }
        if number % 2 == 0 && number % 3 == 0 && number % 5 != 0 && (20..90).contains(&number) {
            expected.push(fence.record);
        }
        f.hands.advance(Duration::from_secs(1));
    }
    for limit in [1, 2, 7, 100] {
        let filter = Filter {
            state: Some(State::Unknown),
            route: Some("third".to_owned()),
            query: Some("R-".to_owned()),
            reference: Some("even".to_owned()),
            created_from: Some(start + Duration::from_secs(20)),
            created_until: Some(start + Duration::from_secs(90)),
            limit,
            ..Filter::default()
        };
        assert_eq!(found(&f, filter).await, expected, "{limit}");
        let page = Filter {
            limit,
            ..Filter::default()
        };
        assert_eq!(found(&f, page).await.len(), 120, "{limit}");
    }
}

fn call(body: &'static str) -> Option<KeptRequest> {
    let headers = [("accept", &b"*/*"[..]), ("x-odd", b"\x80\xff \"")];
    let headers = headers.into_iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_bytes(value).unwrap(),
        )
    });
    Some(KeptRequest {
        headers: headers.collect(),
        body: Bytes::from_static(body.as_bytes()),
    })
}

fn calling(message: &str, body: &'static str) -> Claim {
    Claim {
        request: call(body),
        ..refund(message)
    }
}

pub(crate) async fn a_call_is_kept_until_its_record_is_done(open: Open) {
    let f = open.one().await;
    let kept = async |id| f.ledger.request(id).await.unwrap();
    let fence = f.granted(calling("a", "{\"a\":1}")).await;
    let id = fence.record;
    assert_eq!(kept(id).await, call("{\"a\":1}"));
    f.settle(fence, not_applied()).await;
    assert_eq!(kept(id).await, call("{\"a\":1}"));
    // Serialised anew, the newest one is what would be sent.
    let fence = f.granted(calling("a", "{ \"a\": 1 }")).await;
    assert_eq!(kept(id).await, call("{ \"a\": 1 }"));
    // A duplicate of a running or a held one changes nothing, nor does another message.
    f.claim(calling("a", "a duplicate")).await;
    f.settle(fence, cannot_say()).await;
    f.claim(calling("a", "a duplicate")).await;
    let conflict = Claim {
        fingerprint: Fingerprint([8; 32]),
        ..calling("a", "other money")
    };
    f.claim(conflict).await;
    assert_eq!(kept(id).await, call("{ \"a\": 1 }"));
    f.resolve_by_force(id, Verdict::NotApplied).await.unwrap();
    assert_eq!(kept(id).await, call("{ \"a\": 1 }"));
    // A claim without its call, on a route that resends, leaves it.
    f.settled(notice("a"), success()).await;
    assert_eq!(kept(id).await, None);
    f.claim(calling("a", "a replay")).await;
    assert_eq!(kept(id).await, None);

    for verdict in [
        Verdict::Applied(answer(200, "")),
        Verdict::Rejected(answer(500, "")),
    ] {
        let message = format!("{verdict:?}");
        let fence = f.settled(calling(&message, "x"), cannot_say()).await;
        f.resolve(fence.record, verdict).await.unwrap();
        assert_eq!(kept(fence.record).await, None);
        // Taken back, it may have to be sent after all: Tiki's next try brings it again.
        f.reopen(fence.record).await.unwrap();
        let version = f.record(fence.record).await.version;
        f.claim(calling(&message, "again")).await;
        assert_eq!(kept(fence.record).await, call("again"));
        assert_eq!(f.record(fence.record).await.version, version);
    }
    assert_eq!(kept(RecordId(u64::from(u32::MAX))).await, None);
    let bare = f.granted(refund("bare")).await;
    assert_eq!(kept(bare.record).await, None);
}

pub(crate) async fn held_calls_are_kept(open: Open) {
    let f = open.one().await;
    let kept = async |id| f.ledger.request(id).await.unwrap();
    let tightened = f.settled(notice("tightened"), cannot_say()).await;
    let released = f.settled(refund("released"), not_applied()).await;
    f.settled(payment("first", true), success()).await;
    let suspect = Claim {
        request: call("suspect"),
        ..payment("second", true)
    };
    let suspect = f.held(suspect).await;
    assert_eq!(kept(suspect).await, call("suspect"));
    f.held(calling("tightened", "tightened")).await;
    assert_eq!(kept(tightened.record).await, call("tightened"));
    f.quarantined().await;
    let gap = f.held(calling("gap", "gap")).await;
    assert_eq!(kept(gap).await, call("gap"));
    f.held(calling("released", "released")).await;
    assert_eq!(kept(released.record).await, call("released"));
}
