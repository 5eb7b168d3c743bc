//! Orders' events and second refunds: what is written about them.

use std::time::Duration;

use super::super::{PossibleDuplicate, StaleEvents, effective};
use super::{GOOD, only_error, route_with, settings};

fn keyed(route: &str, keys: &str) -> String {
    route_with(route, &format!("idempotency = {{ {keys} }}"))
}

#[test]
fn stale_events_are_marked_or_dropped() {
    let stale = |text: &str| {
        settings(text).routes[0]
            .idempotency
            .as_ref()
            .unwrap()
            .stale_events
    };
    assert_eq!(stale(GOOD), StaleEvents::Mark);
    let dropped = keyed("ipn", "stale_events = \"drop\"");
    assert_eq!(stale(&dropped), StaleEvents::Drop);
    assert_eq!(
        effective(&settings(&dropped))["routes"][0]["idempotency"]["stale_events"],
        "drop"
    );
    only_error(
        &keyed("ipn", "stale_events = \"hold\""),
        "unknown_word",
        "routes.ipn.idempotency.stale_events",
    );
}

#[test]
fn second_refunds_are_marked_or_held() {
    let text = keyed(
        "refund",
        "possible_duplicate = \"hold\", duplicate_window = \"30d\"",
    );
    let read = settings(&text);
    let refund = read.routes[1].idempotency.as_ref().unwrap();
    assert_eq!(refund.possible_duplicate, PossibleDuplicate::Hold);
    assert_eq!(refund.duplicate_window, Duration::from_secs(30 * 86_400));
    let shown = &effective(&read)["routes"][1]["idempotency"];
    assert_eq!(shown["possible_duplicate"], "hold");
    assert_eq!(shown["duplicate_window"], "30d");
    assert!(shown.get("stale_events").is_none());
    for (keys, code, key) in [
        (
            "possible_duplicate = \"drop\"",
            "unknown_word",
            "possible_duplicate",
        ),
        (
            "duplicate_window = \"30d1ms\"",
            "out_of_bounds",
            "duplicate_window",
        ),
        (
            "duplicate_window = \"0s\"",
            "out_of_bounds",
            "duplicate_window",
        ),
        (
            "duplicate_window = \"3d\", keep = \"2d\"",
            "short_keep",
            "duplicate_window",
        ),
    ] {
        only_error(
            &keyed("refund", keys),
            code,
            &format!("routes.refund.idempotency.{key}"),
        );
    }
    settings(&keyed("refund", "duplicate_window = \"2d\", keep = \"2d\""));
    settings(&keyed("ipn", "keep = \"44h\""));
}

#[test]
fn each_belongs_to_its_payload() {
    for (route, keys, key, payload) in [
        (
            "refund",
            "stale_events = \"mark\"",
            "stale_events",
            "order_ipn",
        ),
        (
            "ipn",
            "possible_duplicate = \"mark\"",
            "possible_duplicate",
            "refund",
        ),
        (
            "ipn",
            "duplicate_window = \"1h\"",
            "duplicate_window",
            "refund",
        ),
    ] {
        let text = keyed(route, keys);
        let problem = only_error(
            &text,
            "other_payload",
            &format!("routes.{route}.idempotency.{key}"),
        );
        assert!(
            problem.message.contains(&format!("payload \"{payload}\"")),
            "{problem}"
        );
        let line = text
            .lines()
            .position(|line| line.starts_with("idempotency"))
            .unwrap();
        assert_eq!(problem.line, Some(line + 1));
    }
}
