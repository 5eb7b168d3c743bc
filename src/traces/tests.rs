use std::collections::HashSet;

use super::*;

const PARENT: &[u8; 55] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_span_is_told_on_as_it_was_read() {
    let ids = TraceIds::new(0, 7);
    let span = ids.begin(Some(PARENT)).unwrap();
    assert_eq!(span.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
    assert_eq!(
        (span.parent, span.parent_is_remote),
        (0x00f0_67aa_0ba9_02b7, true)
    );
    let told = String::from_utf8(span.traceparent().to_vec()).unwrap();
    let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{:016x}-01", span.span);
    assert_eq!(told, expected);
    let child = ids.child(&span);
    assert_eq!((child.trace, child.parent), (span.trace, span.span));
    assert_ne!(child.span, span.span);
}

#[test]
fn the_callers_flag_decides_and_other_bits_of_it_say_nothing() {
    let ids = TraceIds::new(100, 7);
    let with_flags = |flags: &[u8; 2]| {
        let mut parent = *PARENT;
        parent[53..].copy_from_slice(flags);
        ids.begin(Some(&parent)).is_some()
    };
    assert!(with_flags(b"01") && with_flags(b"03") && with_flags(b"ff"));
    assert!(!with_flags(b"00") && !with_flags(b"02") && !with_flags(b"fe"));
}

#[test]
fn as_many_are_drawn_as_were_asked_for_and_no_id_comes_twice() {
    for (percent, expected) in [
        (0, 0..=0),
        (10, 800..=1200),
        (50, 4700..=5300),
        (100, 10_000..=10_000),
    ] {
        let ids = TraceIds::new(percent, 0x1234_5678);
        let drawn: Vec<SpanContext> = (0..10_000).filter_map(|_| ids.begin(None)).collect();
        assert!(
            expected.contains(&drawn.len()),
            "{percent}: {}",
            drawn.len()
        );
        let spans: HashSet<u64> = drawn.iter().map(|span| span.span).collect();
        let traces: HashSet<u128> = drawn.iter().map(|span| span.trace).collect();
        assert_eq!((spans.len(), traces.len()), (drawn.len(), drawn.len()));
    }
}

fn span(tracer: &Tracer) -> Span {
    Span {
        context: tracer.begin(None).unwrap(),
        name: "POST /refund".to_owned(),
        side: Side::Server,
        start: SystemTime::UNIX_EPOCH,
        end: SystemTime::UNIX_EPOCH,
        attributes: Vec::new(),
        error: None,
    }
}

#[test]
fn a_full_queue_drops_and_counts() {
    let counts = Arc::new(SpanCounts::default());
    let (tracer, finished) = Tracer::new(100, 7, Arc::clone(&counts));
    for _ in 0..QUEUE {
        tracer.finish(true, || span(&tracer));
    }
    assert_eq!(counts.dropped.load(Ordering::Relaxed), 0);
    for _ in 0..5 {
        tracer.finish(true, || panic!("there is no room: nobody asks for it"));
    }
    assert_eq!(counts.dropped.load(Ordering::Relaxed), 5);
    drop(finished);
    tracer.finish(true, || panic!("nobody is there"));
    assert_eq!(counts.dropped.load(Ordering::Relaxed), 6);
}

#[test]
fn who_has_proved_nothing_fills_half_of_the_queue_at_most() {
    let counts = Arc::new(SpanCounts::default());
    let (tracer, finished) = Tracer::new(100, 7, Arc::clone(&counts));
    for _ in 0..QUEUE {
        tracer.finish(false, || span(&tracer));
    }
    assert_eq!(finished.0.len(), QUEUE / 2);
    tracer.finish(true, || span(&tracer));
    assert_eq!(finished.0.len(), QUEUE / 2 + 1);
}
