//! Each way in which a backend can break a call, on each kind of route.

use std::time::Duration;

use super::{
    Kind, Outcome, SUCCESS, Settles, Stage, assert_again, assert_first, assert_refused, deadlines,
    last_line, one_worker,
};
use crate::support::backend::{Answer, Backend, Behaviour, OnConnect, Refusing, Then};
use crate::support::gate::TestGate;
use tikigate::ledger::State;

/// What may come of a fault. Several outcomes: it depends on whether the fault overtakes the
/// request, and each is as safe as the other.
struct Row {
    name: &'static str,
    on_connect: OnConnect,
    on_request: Behaviour,
    outcomes: Vec<Outcome>,
}

/// A fault after the whole request was read.
fn after_reading(name: &'static str, on_request: Behaviour, outcome: Outcome) -> Row {
    Row {
        name,
        on_connect: OnConnect::Serve,
        on_request,
        outcomes: vec![outcome],
    }
}

/// A fault before that.
fn before_reading(name: &'static str, on_connect: OnConnect, outcomes: &[Outcome]) -> Row {
    Row {
        name,
        on_connect,
        on_request: Behaviour::Close,
        outcomes: outcomes.to_vec(),
    }
}

fn raw(text: &str, then: Then) -> Behaviour {
    Behaviour::Raw(text.as_bytes().to_vec(), then)
}

fn connection_faults() -> Vec<Row> {
    let reset = Outcome::lost("upstream_reset");
    let closed = Outcome::lost("upstream_closed");
    let nothing = Outcome::unreachable("not_sent");
    let gone = Outcome::unreachable("connect_failed");
    let early = Behaviour::then_close(Answer::success());
    vec![
        before_reading(
            "reset-unread",
            OnConnect::Reset,
            &[gone, nothing, reset, closed],
        ),
        before_reading(
            "closed-unread",
            OnConnect::Close,
            &[gone, nothing, reset, closed],
        ),
        before_reading(
            "reset-after-head",
            OnConnect::AfterHead(Behaviour::Reset),
            &[reset],
        ),
        before_reading(
            "closed-after-head",
            OnConnect::AfterHead(Behaviour::Close),
            &[reset, closed],
        ),
        before_reading(
            "answered-after-head",
            OnConnect::AfterHead(early),
            &[Outcome::done(200, "success")],
        ),
        before_reading(
            "answered-unasked",
            OnConnect::Say(Answer::success().bytes(), Then::Close),
            &[gone, nothing, Outcome::done(200, "success")],
        ),
        after_reading("reset", Behaviour::Reset, reset),
        after_reading("closed", Behaviour::Close, closed),
    ]
}

fn broken_answers() -> Vec<Row> {
    let incomplete = Outcome::lost("upstream_incomplete");
    let protocol = Outcome::lost("upstream_protocol");
    let head = "HTTP/1.1 200 OK\r\n";
    let long_head = format!("{head}X: {}\r\n\r\n", "x".repeat(100_000));
    vec![
        after_reading("half-a-head", Behaviour::half_a_head(), incomplete),
        after_reading("head-only", Behaviour::head_only(), incomplete),
        after_reading("half-a-body", Behaviour::half_a_body(), incomplete),
        after_reading("half-the-chunks", Behaviour::half_the_chunks(), incomplete),
        after_reading(
            "interim-only",
            raw("HTTP/1.1 100 Continue\r\n\r\n", Then::Close),
            incomplete,
        ),
        after_reading(
            "half-a-body-reset",
            raw(
                &format!("{head}Content-Length: 10\r\n\r\n12345"),
                Then::Reset,
            ),
            Outcome::lost("upstream_reset"),
        ),
        after_reading("malformed", Behaviour::malformed(), protocol),
        after_reading("long-head", raw(&long_head, Then::Silence), protocol),
        after_reading(
            "two-lengths",
            raw(
                &format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n12"),
                Then::Silence,
            ),
            protocol,
        ),
        after_reading("switching", Behaviour::switching_protocols(), protocol),
    ]
}

fn strange_answers() -> Vec<Row> {
    let success = Outcome::done(200, "success");
    let elsewhere = Answer::new(302).header("Location", "/elsewhere");
    let dripping = Answer::success().until_close();
    let large = || Answer::new(200).body("x".repeat(100_000));
    let endless = Behaviour::Flood(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
    vec![
        after_reading(
            "redirect",
            elsewhere.until_close().into(),
            Outcome::unclear(),
        ),
        after_reading(
            "not-modified",
            Answer::new(304).until_close().into(),
            Outcome::unclear(),
        ),
        after_reading(
            "interim",
            Behaviour::interim_then(Answer::success()).and_then(Behaviour::Close),
            success,
        ),
        after_reading(
            "surplus",
            Behaviour::with_surplus(Answer::success(), b"HTTP/1.1 500 Surplus\r\n\r\n"),
            success,
        ),
        after_reading(
            "slow-body",
            Behaviour::Drip(dripping, Duration::from_millis(1)).and_then(Behaviour::Close),
            success,
        ),
        after_reading("large-body", large().until_close().into(), success),
        after_reading("large-chunks", large().chunked().into(), success),
        after_reading("huge-body", Behaviour::huge(), success),
        after_reading("endless-body", endless, success),
        after_reading(
            "large-failure",
            Answer::new(500).body("x".repeat(100_000)).into(),
            Outcome::unclear(),
        ),
    ]
}

/// What the metrics must have counted.
#[derive(Default)]
struct Tally {
    replays: [u32; 2],
    done: u32,
    unknown: u32,
    unreachable: u32,
}

impl Tally {
    /// After [`assert_first`] and [`assert_again`].
    fn count(&mut self, kind: Kind, outcome: &Outcome) {
        if outcome
            .refusal
            .is_some_and(|(code, _)| code == "upstream_unreachable")
        {
            self.unreachable += 1;
        }
        let keyed = match kind {
            Kind::Hold => 0,
            Kind::Resend => 1,
            Kind::Post | Kind::Get => return,
        };
        match outcome.state(kind) {
            State::Unknown => self.unknown += 1,
            // Either at once or at the second attempt, and then given again.
            _ => {
                self.done += 1;
                self.replays[keyed] += 1;
            }
        }
    }

    async fn assert_counted(&self, gate: &TestGate) {
        let mut counted = 0.0;
        for kind in Kind::ALL {
            for reason in ["not_sent", "connect_failed"] {
                counted += gate.metric(&unreachable(kind, reason)).await;
            }
        }
        assert_eq!(counted, f64::from(self.unreachable));
        for (series, expected) in [
            (r#"tikigate_replays_total{route="refund"}"#, self.replays[0]),
            (r#"tikigate_replays_total{route="ipn"}"#, self.replays[1]),
            (r#"tikigate_replays_total{route="any"}"#, 0),
            (r#"tikigate_ledger_records{state="done"}"#, self.done),
            (r#"tikigate_ledger_records{state="unknown"}"#, self.unknown),
            (r#"tikigate_ledger_records{state="released"}"#, 0),
            (r#"tikigate_ledger_records{state="claimed"}"#, 0),
        ] {
            assert_eq!(gate.metric(series).await, f64::from(expected), "{series}");
        }
    }
}

/// The metric that counts these.
fn unreachable(kind: Kind, reason: &str) -> String {
    let route = kind.route();
    format!(
        r#"tikigate_refusals_total{{route="{route}",error="upstream_unreachable",reason="{reason}"}}"#
    )
}

async fn assert_rows(rows: Vec<Row>) {
    let stage = Stage::open().await;
    // It is about one fault after the other, however many there are.
    let config = one_worker(&stage.backend.url()).replace(
        "[signature]",
        "[upstreams.legacy.breaker]\nenabled = false\n[signature]",
    );
    let gate = TestGate::with(&config).await;
    let mut tally = Tally::default();
    for row in &rows {
        for kind in Kind::ALL {
            let outcome = assert_row(&gate, &stage, row, kind).await;
            tally.count(kind, &outcome);
        }
    }
    tally.assert_counted(&gate).await;
}

async fn assert_row(gate: &TestGate, stage: &Stage, row: &Row, kind: Kind) -> Outcome {
    let id = format!("{}-{}", row.name, kind.route());
    let call = kind.call(gate, &id);
    stage.plays(row.on_connect.clone(), row.on_request.clone());
    let before = stage.counts();
    let first = gate.send(&call).await;
    let code = (first.status != 200).then(|| first.error_code()).flatten();
    let reason = last_line(gate, kind.route())["tikigate.reason"].clone();
    let outcome = row.outcomes.iter().find(|outcome| {
        outcome.refusal.map(|(code, _)| code) == code.as_deref()
            && outcome.refusal.is_none_or(|(_, word)| reason == word)
    });
    let outcome = outcome.unwrap_or_else(|| panic!("{id}: {code:?} {reason:?} {first:?}"));
    assert_first(gate, kind, &id, &first, outcome).await;
    if outcome.settles == Settles::Done {
        assert_eq!(first.text(), SUCCESS, "{id}");
    }

    let (connections, requests) = stage.counts();
    let reads = matches!(row.on_connect, OnConnect::Serve);
    assert_eq!(requests - before.1, usize::from(reads), "{id}: requests");
    // Where nothing went out, a route that need not connect anew may have tried other connections.
    let most = match (kind, outcome.refusal) {
        (Kind::Hold, _) => 1,
        _ if reads => 1,
        _ => 3,
    };
    assert!(
        (1..=most).contains(&(connections - before.0)),
        "{id}: {} connections",
        connections - before.0
    );
    assert_again(gate, stage, kind, &id, &call, (&first, outcome)).await;
    *outcome
}

#[tokio::test]
async fn a_connection_that_breaks_ends_where_it_is_safe() {
    assert_rows(connection_faults()).await;
}

#[tokio::test]
async fn an_answer_that_is_not_whole_says_nothing() {
    assert_rows(broken_answers()).await;
}

#[tokio::test]
async fn a_strange_answer_is_taken_for_what_it_says() {
    assert_rows(strange_answers()).await;
}

#[tokio::test]
async fn a_refused_connection_proves_that_nothing_was_sent() {
    let refusing = Refusing::bind();
    let gate = TestGate::start(&refusing.url()).await;
    let refused = Outcome::unreachable("connect_refused");
    for kind in Kind::ALL {
        let call = kind.call(&gate, "r-1");
        let first = gate.send(&call).await;
        assert_first(&gate, kind, "r-1", &first, &refused).await;
        let second = gate.send(&call).await;
        assert_refused(
            &gate,
            kind,
            &second,
            (502, "upstream_unreachable", "connect_refused"),
        );
        let series = unreachable(kind, "connect_refused");
        assert_eq!(gate.metric(&series).await, 2.0, "{series}");
        if let Some(key) = kind.key("r-1") {
            let record = gate.record(&key).await.unwrap();
            assert_eq!((record.state, record.attempt), (State::Released, 2));
        }
    }
    assert_eq!(
        gate.metric(r#"tikigate_ledger_records{state="released"}"#)
            .await,
        2.0
    );
}

#[tokio::test]
async fn what_a_missing_backend_did_not_get_it_gets_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend.sock");
    let gate = TestGate::start(&format!("unix:{}", path.display())).await;
    let calls = Kind::ALL.map(|kind| (kind, kind.call(&gate, "r-1")));
    for (kind, call) in &calls {
        let first = gate.send(call).await;
        let refused = Outcome::unreachable("connect_refused");
        assert_first(&gate, *kind, "r-1", &first, &refused).await;
    }
    let backend = Backend::start_unix(&path, |_| Answer::success().into()).await;
    for (number, (kind, call)) in calls.iter().enumerate() {
        assert_eq!(gate.send(call).await.status, 200, "{kind:?}");
        assert_eq!(backend.requests().len(), number + 1);
        let attempt = if kind.key("r-1").is_some() { "2" } else { "1" };
        let seen = &backend.requests()[number];
        assert_eq!(seen.header("x-tikigate-attempt"), Some(attempt));
        assert_eq!(seen.header("idempotency-key"), kind.key("r-1").as_deref());
    }
}

#[tokio::test]
async fn a_connect_that_hangs_ends_by_its_own_timeout() {
    // A listener with a full queue leaves further connects hanging.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any_port = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any_port.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _filling = std::net::TcpStream::connect(address).unwrap();

    let url = format!("http://{address}");
    let gate = TestGate::with(&deadlines(&url, "14s", "30s")).await;
    let hanging = Outcome::unreachable("connect_timeout");
    for kind in Kind::ALL {
        let call = kind.call(&gate, "r-1");
        let first = gate.send(&call).await;
        assert_first(&gate, kind, "r-1", &first, &hanging).await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Backend::start(|_| Answer::success().into()).await;
    let location = format!("{}/stolen", other.url());
    let backend =
        Backend::start(move |_| Answer::new(307).header("Location", &location).into()).await;
    let gate = TestGate::start(&backend.url()).await;
    for kind in Kind::ALL {
        let answer = gate.send(&kind.call(&gate, "r-1")).await;
        assert_first(&gate, kind, "r-1", &answer, &Outcome::unclear()).await;
        assert_eq!(answer.header("location"), None);
    }
    assert!(other.connections().is_empty());
    assert_eq!(backend.requests().len(), 4);
}
