//! Changes that are taken: what swaps, and what carries over.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tikigate::ledger::State;
use tikigate::tiki::{Family, SigningKey, Timestamp};

use super::{changed, with_secrets};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{CLIENT, Call, OTHER_SECRET, SECRET, TestGate, refund, usual};
use crate::support::raw::RawAnswer;

/// A call of the usual client, signed with this secret.
async fn call_with(gate: &TestGate, secret: &str, body: &str) -> RawAnswer {
    let client = (CLIENT, secret);
    let call = Call::post_as(client, Family::TikiVip, "/tiki/any", body, gate.now());
    gate.send(&call).await
}

async fn matches(gate: &TestGate, secret: &str) -> f64 {
    let labels = format!("client=\"wallet\",secret=\"{secret}\"");
    let series = format!("tikigate_signature_matches_total{{{labels}}}");
    gate.metric(&series).await
}

#[tokio::test]
async fn a_secret_is_rotated_as_the_operations_page_walks_through_it() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let files = [("new-secret", OTHER_SECRET)];
    let gate = TestGate::watched(&with_secrets(&url, &[("old", "secret")]), &files).await;
    assert_eq!(call_with(&gate, SECRET, "1").await.status, 200);
    assert_eq!(call_with(&gate, OTHER_SECRET, "2").await.status, 401);

    let both = with_secrets(&url, &[("new", "new-secret"), ("old", "secret")]);
    assert!(gate.reload(&both).await, "{}", gate.readiness().await);
    assert_eq!(call_with(&gate, SECRET, "3").await.status, 200);
    assert_eq!(call_with(&gate, OTHER_SECRET, "4").await.status, 200);
    assert_eq!(matches(&gate, "old").await, 2.0, "its count goes on");
    assert_eq!(matches(&gate, "new").await, 1.0);

    let new = with_secrets(&url, &[("new", "new-secret")]);
    assert!(gate.reload(&new).await);
    assert_eq!(call_with(&gate, SECRET, "5").await.status, 401);
    assert_eq!(call_with(&gate, OTHER_SECRET, "6").await.status, 200);
    assert_eq!(matches(&gate, "new").await, 2.0);
    assert_eq!(matches(&gate, "old").await, 2.0, "it is still shown");
    assert_eq!(gate.reloads().await, (2, 0));
}

#[tokio::test]
async fn a_secret_that_changes_in_its_file_is_taken_without_being_asked() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = TestGate::watched(&usual(&backend.url()), &[]).await;
    let before = gate.reloads().await;
    gate.put("secret", OTHER_SECRET);
    assert_eq!(gate.reloaded(before).await, (1, 0));
    assert_eq!(call_with(&gate, SECRET, "1").await.status, 401);
    assert_eq!(call_with(&gate, OTHER_SECRET, "2").await.status, 200);
}

/// A directory as Kubernetes mounts a secret: each file a link through `..data`.
fn mount(at: &Path, version: &str, secret: &str) {
    std::fs::create_dir(at.join(version)).unwrap();
    std::fs::write(at.join(version).join("mounted"), secret).unwrap();
    symlink(version, at.join("..next")).unwrap();
    std::fs::rename(at.join("..next"), at.join("..data")).unwrap();
}

#[tokio::test]
async fn a_mount_that_kubernetes_swaps_is_noticed() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = TestGate::watched(&usual(&backend.url()), &[]).await;
    mount(gate.directory(), "..1", SECRET);
    symlink("..data/mounted", gate.directory().join("mounted")).unwrap();
    let mounted = with_secrets(&backend.url(), &[("now", "mounted")]);
    assert!(gate.reload(&mounted).await, "{}", gate.readiness().await);
    let before = gate.reloads().await;
    mount(gate.directory(), "..2", OTHER_SECRET);
    gate.reloaded(before).await;
    assert_eq!(call_with(&gate, OTHER_SECRET, "1").await.status, 200);
    assert_eq!(call_with(&gate, SECRET, "2").await.status, 401);
}

#[tokio::test]
async fn routes_come_and_go_and_what_was_known_stays_known() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let gate = TestGate::watched(&usual(&url), &[]).await;
    let first = gate.post("/tiki/refund", &refund("r-1", "1000")).await;
    assert_eq!(first.status, 200);

    // Another route in front of all, and the refunds' has another path, name and backend path.
    let new =
        "[[routes]]\nname = \"first\"\npath = \"/first\"\nmethod = \"POST\"\npayload = \"any\"\n";
    let moved = changed(
        &url,
        &[
            (
                "[[routes]]\nname = \"ipn\"",
                &format!("{new}[[routes]]\nname = \"ipn\""),
            ),
            (
                "name = \"refund\"\npath = \"/tiki/refund\"",
                "name = \"repay\"\npath = \"/tiki/repay\"",
            ),
        ],
    );
    assert!(gate.reload(&moved).await, "{}", gate.readiness().await);
    assert_eq!(gate.post("/first", "1").await.status, 200);
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-1", "1000"))
            .await
            .status,
        404
    );
    let sent = backend.requests().len();
    gate.advance(Duration::from_secs(1));
    let again = gate.post("/tiki/repay", &refund("r-1", "1000")).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(backend.requests().len(), sent, "answered from the ledger");
    assert_eq!(
        gate.metric("tikigate_replays_total{route=\"repay\"}").await,
        1.0
    );
    // The old name's counts are still there.
    let counted = "tikigate_requests_total{route=\"refund\",code=\"200\"}";
    assert_eq!(gate.metric(counted).await, 1.0);
}

/// What one route accepted is refused on every other, whatever places they have in the file.
#[tokio::test]
async fn a_signature_stays_tied_to_its_route_when_routes_move_in_the_file() {
    let backend = Backend::start(|_| Answer::json(500, "{}").into()).await;
    let url = backend.url();
    let other = "[[routes]]\nname = \"other\"\npath = \"/tiki/other\"\nmethod = \"POST\"\npayload = \"any\"\nclients = [\"wallet\"]\n";
    let appended = usual(&url).replace("[ledger]", &format!("{other}[ledger]"));
    let prepended = usual(&url).replacen("[[routes]]", &format!("{other}[[routes]]"), 1);
    let gate = TestGate::watched(&appended, &[]).await;
    let call = gate.signed("/tiki/any", "once");
    assert_eq!(gate.send(&call).await.status, 500);
    assert!(gate.reload(&prepended).await);
    // Sent again unchanged, to where it was sent and to where it was not.
    assert_eq!(gate.send(&call).await.status, 500);
    let elsewhere = gate.send(&call.clone().to("/tiki/other")).await;
    assert_eq!(
        (elsewhere.status, elsewhere.error_code().as_deref()),
        (409, Some("replayed"))
    );
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test]
async fn a_call_ends_with_the_settings_that_it_began_with() {
    let held = Hold::new();
    let hold = held.clone();
    let old =
        Backend::start(move |_| Behaviour::Held(hold.clone(), Box::new(Answer::success().into())))
            .await;
    let new = Backend::start(|_| Answer::json(200, "{\"from\":\"new\"}").into()).await;
    let toml = |url: &str| {
        let patient = [
            ("answer_within = \"1s\"", "answer_within = \"12s\""),
            ("settle_within = \"4s\"", "settle_within = \"20s\""),
        ];
        changed(url, &patient)
    };
    let gate = TestGate::watched(&toml(&old.url()), &[]).await;
    let mut client = gate.connect().await;
    client
        .send(gate.signed("/tiki/refund", &refund("r-1", "1")).to_bytes())
        .await;
    old.wait_for_requests(1).await;
    assert!(gate.reload(&toml(&new.url())).await);
    // The next call goes to the new backend, and the same refund joins the one that runs at the old one.
    let other = gate.post("/tiki/refund", &refund("r-2", "1")).await;
    assert_eq!(other.json()["from"], "new");
    let mut joined = gate.connect().await;
    gate.advance(Duration::from_secs(1));
    joined
        .send(gate.signed("/tiki/refund", &refund("r-1", "1")).to_bytes())
        .await;
    assert!(joined.is_silent().await);
    held.release();
    assert_eq!(client.read_answer().await.status, 200);
    assert_eq!(joined.read_answer().await.status, 200);
    assert_eq!((old.requests().len(), new.requests().len()), (1, 1));
    assert_eq!(gate.state("r-1").await, Some(State::Done));
    // The connection that was there before the reload is still good.
    client
        .send(gate.signed("/tiki/any", "next").to_bytes())
        .await;
    assert_eq!(client.read_answer().await.json()["from"], "new");
}

#[tokio::test]
async fn what_was_used_of_a_limit_that_stays_is_used() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let limited = |rate: &str, file: &str| {
        let toml = with_secrets(&backend.url(), &[("now", file)]);
        toml.replacen("rate = { per_second = 100000, burst = 100000 }", rate, 1)
    };
    let three = "rate = { per_second = 1, burst = 3 }";
    let gate = TestGate::watched(&limited(three, "secret"), &[("same", SECRET)]).await;
    let statuses = async |bodies: [&str; 4]| {
        let mut statuses = Vec::new();
        for body in bodies {
            statuses.push(call_with(&gate, SECRET, body).await.status);
        }
        statuses
    };
    assert_eq!(statuses(["1", "2", "3", "4"]).await, [200, 200, 200, 503]);
    assert!(gate.reload(&limited(three, "same")).await);
    assert_eq!(statuses(["5", "6", "7", "8"]).await, [503; 4]);
    gate.advance(Duration::from_secs(1));
    assert_eq!(
        statuses(["9", "10", "11", "12"]).await,
        [200, 503, 503, 503]
    );
    // Another limit begins anew.
    let two = "rate = { per_second = 1, burst = 2 }";
    assert!(gate.reload(&limited(two, "same")).await);
    assert_eq!(
        statuses(["13", "14", "15", "16"]).await,
        [200, 200, 503, 503]
    );
}

#[tokio::test]
async fn limits_level_and_tokens_change_for_the_next_call() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let gate = TestGate::watched(
        &usual(&url),
        &[("linh.token", "0123456789abcdef0123456789abcdef")],
    )
    .await;
    let toml = changed(
        &url,
        &[
            (
                "[admin]\n",
                "[admin]\ntokens = [{ name = \"linh\", file = \"linh.token\" }]\n",
            ),
            ("level = \"info\"", "level = \"error\""),
            (
                "payload = \"any\"\nupstream_path",
                "payload = \"any\"\nbody_limit = \"8B\"\nupstream_path",
            ),
        ],
    );
    let api = async |token: &str| {
        let request = format!(
            "GET /api/ledger HTTP/1.1\r\nHost: localhost:{}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n",
            gate.admin_address().to_string().rsplit(':').next().unwrap()
        );
        crate::support::raw::exchange(gate.admin_address(), request)
            .await
            .status
    };
    let made = std::fs::read_to_string(gate.directory().join("admin.token")).unwrap();
    assert_eq!(api(made.trim()).await, 200);
    assert!(gate.reload(&toml).await, "{}", gate.readiness().await);
    assert_eq!(api(made.trim()).await, 401);
    assert_eq!(api("0123456789abcdef0123456789abcdef").await, 200);
    let lines = gate.log().len();
    assert_eq!(gate.post("/tiki/any", "12345678").await.status, 200);
    assert_eq!(gate.post("/tiki/any", "123456789").await.status, 413);
    assert_eq!(gate.log().len(), lines, "neither info nor warn is written");
}

/// The partner's own calls: what they are signed with, and what callers must show.
#[tokio::test]
async fn calls_to_tiki_are_signed_with_the_new_secret() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let other = "[[clients]]\nid = \"another\"\nname = \"first\"\nsecrets = [{ name = \"now\", file = \"other-secret\" }]\n";
    let with = |secrets: &[(&str, &str)], token: &str| {
        let outbound = format!(
            "[outbound]\nlisten = \"127.0.0.1:0\"\ndelivery = \"direct\"\n{token}\n\
             [[outbound.accounts]]\nclient = \"wallet\"\nbase_url = \"{url}/tiki\"\n"
        );
        with_secrets(&url, secrets).replace("[ledger]", &format!("{outbound}[ledger]"))
    };
    let files = [
        ("new-secret", OTHER_SECRET),
        ("caller.token", "0123456789abcdef0123456789abcdef"),
    ];
    let gate = TestGate::watched(&with(&[("old", "secret")], ""), &files).await;
    let send = async || {
        let request = "POST /webview HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                       Content-Length: 2\r\nConnection: close\r\n\r\n{}";
        crate::support::raw::exchange(gate.outbound_address(), request).await
    };
    let signed_with = |secret: &str| {
        let timestamp = Timestamp::from_system_time(gate.now()).unwrap();
        let key = SigningKey::from_secret(secret.as_bytes());
        let expected = key.sign(timestamp, CLIENT, b"{}").to_hex();
        let requests = backend.requests();
        requests.last().unwrap().header("x-tikivip-signature") == Some(&expected)
    };
    assert_eq!(send().await.status, 200);
    assert!(signed_with(SECRET));
    gate.advance(Duration::from_secs(1));
    let both = [("new", "new-secret"), ("old", "secret")];
    assert!(gate.reload(&with(&both, "")).await);
    assert_eq!(send().await.status, 200);
    assert!(signed_with(OTHER_SECRET));
    // Another client in front of it is no other account, now or the next time.
    let moved =
        |token: &str| with(&both, token).replacen("[[clients]]", &format!("{other}[[clients]]"), 1);
    assert!(gate.reload(&moved("")).await, "{}", gate.readiness().await);
    assert!(!gate.readiness().await.contains("restart"));
    let token = "token = { file = \"caller.token\" }";
    assert!(
        gate.reload(&moved(token)).await,
        "{}",
        gate.readiness().await
    );
    let sent = backend.requests().len();
    assert_eq!(send().await.status, 401);
    assert_eq!(backend.requests().len(), sent);
    assert!(!gate.readiness().await.contains("restart"));
    // Another id behind the same name is another account.
    let id = format!("id = \"{CLIENT}\"");
    let renamed = moved(token).replace(&id, "id = \"another-id\"");
    assert!(gate.reload(&renamed).await, "{}", gate.readiness().await);
    assert!(gate.readiness().await.contains("restart: outbound"));
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_is_taken() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let gate = TestGate::watched(&usual(&url), &[]).await;
    let toml = changed(
        &url,
        &[
            (
                "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2",
                "[server]\nlisten = \"127.0.0.1:1\"\nworkers = 3",
            ),
            (
                "payload = \"any\"\nupstream_path",
                "payload = \"any\"\nbody_limit = \"8B\"\nupstream_path",
            ),
            (
                "allow_volatile = true",
                "allow_volatile = true\nmax_records = 7",
            ),
        ],
    );
    assert!(gate.reload(&toml).await);
    assert_eq!(gate.post("/tiki/any", "123456789").await.status, 413);
    let told = gate.readiness().await;
    for key in ["server.listen", "server.workers", "ledger"] {
        assert!(told.contains(key), "{told}");
    }
    assert_eq!(gate.metric("tikigate_config_restart_needed").await, 1.0);
    assert!(gate.reload(&usual(&url)).await);
    assert_eq!(gate.metric("tikigate_config_restart_needed").await, 0.0);
    assert!(!gate.readiness().await.contains("restart"));
}
