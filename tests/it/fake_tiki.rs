//! The stand-in for Tiki: what it answers is what the gate reads, what it is ordered to break it
//! breaks, and a signature that the gate would make is the only one that it takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tikigate::cli::fake_tiki::{
    Action, FakeTiki, Options, Order, Outgoing, Status, Transaction, Wanted,
};
use tikigate::net::ListenAddress;
use tikigate::tiki::{
    Decimal, Family, IpnReply, ReplyCode, StatusReply, TransactionStatus, read_ipn_reply,
    read_status_reply,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::fake_tiki::{BASE, FakeTikiProcess, PartnerCall};
use crate::support::gate::{CLIENT, OTHER_CLIENT, SECRET};
use crate::support::in_time;
use crate::support::raw::exchange;

#[tokio::test]
async fn the_gate_reads_what_it_answers() {
    let tiki = FakeTikiProcess::start(&[]);
    tiki.put("t-1", "100000.00").await;
    let ipn = PartnerCall::ipn("t-1", "SUCCESS");
    let answer = tiki.exchange(ipn.bytes()).await;
    assert_eq!(
        answer.json(),
        json!({"code": 0, "message": "success", "data": {}})
    );
    assert_eq!(read_ipn_reply(answer.status, &answer.body), IpnReply::Taken);

    let answer = tiki.exchange(PartnerCall::status("t-1").bytes()).await;
    let StatusReply::Found(found) = read_status_reply(answer.status, &answer.body) else {
        panic!("{}", answer.text());
    };
    assert_eq!(
        (found.transaction_id.as_ref(), found.status, found.amount),
        (
            "p-1",
            TransactionStatus::Success,
            Decimal::parse("100000").unwrap()
        )
    );
    assert!(answer.text().contains(r#""amount":100000.00}"#));

    let stranger = |call: PartnerCall| PartnerCall {
        client: OTHER_CLIENT,
        ..call
    };
    let other_id = PartnerCall::post("/payment/ipn", ipn.body.replace("p-1", "p-2"));
    let other_amount = PartnerCall::post("/payment/ipn", ipn.body.replace("100000", "100000.01"));
    for (call, code) in [
        (
            PartnerCall::post("/payment/ipn", "{}"),
            ReplyCode::InvalidRequest,
        ),
        (PartnerCall::ipn("t-2", "SUCCESS"), ReplyCode::NotFound),
        (stranger(ipn.clone()), ReplyCode::NotThisPartners),
        (other_id, ReplyCode::NotThisPartners),
        (other_amount, ReplyCode::WrongAmount),
    ] {
        let answer = tiki.exchange(call.bytes()).await;
        let reply = read_ipn_reply(answer.status, &answer.body);
        assert_eq!(reply, IpnReply::Refused(Some(code)), "{}", call.body);
        assert_eq!(tiki.last().await["code"], code.number());
    }
    for (call, code) in [
        (PartnerCall::get("/transaction"), ReplyCode::InvalidRequest),
        (PartnerCall::status("t-2"), ReplyCode::NotFound),
        (
            stranger(PartnerCall::status("t-1")),
            ReplyCode::NotThisPartners,
        ),
    ] {
        let answer = tiki.exchange(call.bytes()).await;
        let reply = read_status_reply(answer.status, &answer.body);
        assert_eq!(reply, StatusReply::Refused(code), "{}", call.path);
    }
    let cancelled = json!([{"tiki_transaction_id": "t-1", "partner_transaction_id": "p-1",
        "amount": 100000, "client": CLIENT, "status": "CANCELLED"}]);
    let put = tiki
        .control("PUT", "transactions", &cancelled.to_string())
        .await;
    FakeTikiProcess::worked(put);
    let answer = tiki.exchange(ipn.bytes()).await;
    let reply = read_ipn_reply(answer.status, &answer.body);
    assert_eq!(reply, IpnReply::Refused(Some(ReplyCode::Cancelled)));
    let taken = json!({"PENDING": 0, "SUCCESS": 1, "FAILURE": 0});
    assert_eq!(tiki.counts().await["taken"]["t-1"], taken);
}

#[tokio::test]
async fn the_other_calls_and_the_partners_envelope_are_answered() {
    let tiki = FakeTikiProcess::start(&["--envelope", "partner", "--auto-create"]);
    let answer = tiki
        .exchange(PartnerCall::ipn("t-1", "SUCCESS").bytes())
        .await;
    assert_eq!(answer.json(), json!({"data": {"status": "success"}}));
    let answer = tiki
        .exchange(PartnerCall::post("/payment/ipn", "[]").bytes())
        .await;
    let error = json!({"code": "1", "message": "invalid request"});
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json(), json!({"data": null, "error": error}));

    let answer = tiki.exchange(PartnerCall::status("t-1").bytes()).await;
    assert_eq!(answer.json()["data"]["amount"], 100_000);
    let webview = PartnerCall::post("/webview", "{}");
    let mut urls = Vec::new();
    for _ in 0..2 {
        let answer = tiki.exchange(webview.bytes()).await.json();
        let url = answer["data"]["url"].as_str().unwrap().to_owned();
        assert!(answer["code"] == 0 && url.starts_with("https://"));
        urls.push(url);
    }
    assert_ne!(urls[0], urls[1]);
    let answer = tiki.exchange(PartnerCall::get("/a/b?c=%20+").bytes()).await;
    assert_eq!(answer.json()["data"]["path"], "/a/b?c=%20+");
    let answer = tiki
        .exchange("GET /miniapp/tikivipx HTTP/1.1\r\n\r\n")
        .await;
    assert_eq!(answer.status, 404);
    assert_eq!(tiki.last().await["call"], "outside");

    tiki.exchange(PartnerCall::ipn("t-1", "PENDING").bytes())
        .await;
    let last = tiki.last().await;
    assert!(
        last["order_violation"] == true && last["code"] == 0,
        "{last}"
    );
    assert_eq!(tiki.counts().await["order_violations"], 1);
}

#[tokio::test]
async fn what_the_gate_would_not_send_is_refused_and_noted() {
    let tiki = FakeTikiProcess::start(&["--window", "30s"]);
    tiki.put("t-1", "100000").await;
    let good = PartnerCall::ipn("t-1", "SUCCESS").bytes();
    let line_of = |name: &str| {
        let line = good.lines().find(|line| line.starts_with(name)).unwrap();
        format!("{line}\r\n")
    };
    let signature = line_of("x-tikivip-signature");
    let digits = signature.split(": ").nth(1).unwrap().to_owned();
    let timestamp = line_of("x-tikivip-timestamp");
    let tiniapp = PartnerCall {
        family: Family::TiniApp,
        ..PartnerCall::ipn("t-1", "SUCCESS")
    };
    let base_signed = PartnerCall::get(format!("{BASE}/transaction?tiki_transaction_id=t-1"));
    for (bytes, status, word) in [
        (
            good.replace("100000", "100001"),
            401,
            "not that of the message",
        ),
        (good.replace(&signature, ""), 401, "there is no"),
        (
            good.replace(&timestamp, &timestamp.repeat(2)),
            401,
            "more than one",
        ),
        (
            good.replace(&digits, &digits.to_uppercase()),
            401,
            "lower-case",
        ),
        (good.replace(CLIENT, "nobody"), 401, "unknown"),
        (tiniapp.bytes(), 401, "other family"),
        (
            base_signed.bytes().replacen(BASE, "", 1),
            401,
            "not that of the message",
        ),
        (
            good.replace("application/json", "text/plain"),
            415,
            "content-type",
        ),
        (
            good.replace("/payment/ipn", "/payment/ipn?a=1"),
            400,
            "no query",
        ),
        (good.replace("POST", "PATCH"), 405, "GET and POST"),
    ] {
        let answer = tiki.exchange(&bytes).await;
        assert_eq!(answer.status, status, "{bytes}\n{}", answer.text());
        assert!(answer.text().contains(word), "{}", answer.text());
        let last = tiki.last().await;
        assert!(last["applied"] == false && last["status"] == status);
        assert_eq!(last["signature"] == "ok", status != 401, "{last}");
    }
    let without_length = good.replace("Content-Length", "X-Length");
    assert_eq!(tiki.exchange(without_length).await.status, 411);
    let counts = tiki.counts().await;
    assert_eq!(counts["refused_signatures"], 7);
    assert_eq!(counts["malformed"], 1);
    assert_eq!(counts["taken"]["t-1"]["SUCCESS"], 0);
}

/// Orders a fault for the next IPN about `t-1`, sends one, and gives what came back until the end of
/// the connection, or the answer, and what was seen.
async fn ordered(tiki: &FakeTikiProcess, action: Value) -> (String, Value) {
    tiki.order(json!({"call": "ipn", "transaction": "t-1", "do": action}))
        .await;
    let mut client = tiki.connect().await;
    let call = PartnerCall::ipn("t-1", "SUCCESS").bytes();
    let last = call.replacen("Host:", "Connection: close\r\nHost:", 1);
    client.send(last).await;
    let bytes = client.read_to_end().await;
    (
        String::from_utf8_lossy(&bytes).into_owned(),
        tiki.last().await,
    )
}

#[tokio::test]
async fn each_order_breaks_what_it_says() {
    let tiki = FakeTikiProcess::start(&[]);
    tiki.put("t-1", "100000").await;
    let body_of = |text: &str| text.split_once("\r\n\r\n").unwrap().1.to_owned();
    let applied = |seen: &Value| seen["applied"].as_bool().unwrap();

    let (text, seen) = ordered(&tiki, json!({"code": {"code": 5}})).await;
    assert!(text.starts_with("HTTP/1.1 200") && body_of(&text).contains(r#""code":5"#));
    assert!(!applied(&seen) && seen["order"]["code"]["code"] == 5);
    let action = json!({"code": {"code": 2, "form": "envelope", "apply": true}});
    let (text, seen) = ordered(&tiki, action).await;
    assert!(text.starts_with("HTTP/1.1 500") && body_of(&text).contains(r#""code":"2""#));
    assert!(applied(&seen) && seen["code"] == 2);

    let (text, seen) = ordered(&tiki, json!({"http": {"status": 503, "body": "busy"}})).await;
    assert!(text.starts_with("HTTP/1.1 503") && text.ends_with("\r\n\r\nbusy"));
    assert!(!applied(&seen) && seen["status"] == 503);

    let (text, seen) = ordered(&tiki, json!("apply_then_reset")).await;
    assert!(text.is_empty() && applied(&seen) && seen["status"].is_null());
    let (text, seen) = ordered(&tiki, json!("apply_then_close")).await;
    assert!(text.is_empty() && applied(&seen));
    let (text, seen) = ordered(&tiki, json!("reset_at_once")).await;
    assert!(text.is_empty() && !applied(&seen));

    for (action, word) in [
        (json!({"apply_then_hang": {"ms": 200}}), "success"),
        (json!({"hang": {"ms": 200}}), "success"),
        (json!({"slow": {"ms": 2}}), "success"),
    ] {
        let began = Instant::now();
        let (text, seen) = ordered(&tiki, action).await;
        assert!(began.elapsed() >= Duration::from_millis(200));
        assert!(text.starts_with("HTTP/1.1 200") && text.contains(word));
        assert!(applied(&seen));
    }

    let (text, seen) = ordered(&tiki, json!("half_answer")).await;
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap();
    let length: usize = length.parse().unwrap();
    assert!(applied(&seen) && body_of(&text).len() == length / 2);

    let (text, seen) = ordered(&tiki, json!({"garbage": {}})).await;
    assert!(text.starts_with("HTTP/1.1 200") && applied(&seen));
    assert!(serde_json::from_str::<Value>(&body_of(&text)).is_err());
    let (text, seen) = ordered(&tiki, json!({"huge": {"bytes": 3_000_000}})).await;
    assert!(applied(&seen) && body_of(&text).len() == 3_000_000);
    assert_eq!(
        read_ipn_reply(200, body_of(&text).as_bytes()),
        IpnReply::Taken
    );
    let action = json!({"redirect": {"url": "http://127.0.0.1:1/x"}});
    let (text, seen) = ordered(&tiki, action).await;
    assert!(text.starts_with("HTTP/1.1 302") && !applied(&seen));
    assert!(text.contains("\r\nLocation: http://127.0.0.1:1/x\r\n"));

    let (text, seen) = ordered(&tiki, json!({"code": {"code": 0}})).await;
    assert!(text.contains("success") && !applied(&seen));
    let counts = tiki.counts().await;
    assert_eq!(counts["taken"]["t-1"]["SUCCESS"], 9, "{counts}");
    assert_eq!(counts["orders_used"], 14);
}

#[tokio::test]
async fn a_reset_comes_before_the_body_and_kept_connections_go_on() {
    let tiki = FakeTikiProcess::start(&["--auto-create"]);
    let call = PartnerCall::ipn("t-1", "SUCCESS").bytes();
    let mut client = tiki.connect().await;
    for status in [200, 200] {
        client.send(&call).await;
        assert_eq!(client.read_answer().await.status, status);
    }
    tiki.order(json!({"do": "reset_at_once"})).await;
    let head = call.split_inclusive("\r\n\r\n").next().unwrap();
    client.send(head).await;
    assert!(client.is_closed().await);
    let last = tiki.last().await;
    assert!(last["body"] == "" && last["signature"] == "unchecked");
    assert_eq!(tiki.counts().await["repeated_signatures"], 1);
}

#[tokio::test]
async fn it_calls_a_gate_before_it_answers_and_again_after_a_failure() {
    let gate = FakeTiki::start(Options::default().client(CLIENT, SECRET))
        .await
        .unwrap();
    let put = |id: &str| {
        gate.put_transaction(Transaction::pending(id, "p-1", "1e5", CLIENT).unwrap());
    };
    put("t-9");
    let tiki = FakeTikiProcess::start(&[]);
    tiki.put("t-1", "100000").await;
    let inbound = PartnerCall::ipn("t-9", "SUCCESS").body;
    let url = gate.base_url() + "/payment/ipn";
    let action = json!({"call_first": {"url": url, "body": inbound, "client": CLIENT}});
    let (text, seen) = ordered(&tiki, action).await;
    assert!(text.starts_with("HTTP/1.1 200") && seen["called_first"]["status"] == 200);
    assert!(seen["called_first"]["ms"].is_u64(), "{seen}");

    let failing = Action::Http {
        status: 502,
        body: String::new(),
        apply: false,
    };
    gate.order(Order::new(Wanted::Ipn, failing).times(2))
        .unwrap();
    let send = json!({"url": url, "body": inbound, "client": CLIENT, "resend": true,
        "speed": 60_000, "patience_ms": 5000});
    let answer = FakeTikiProcess::worked(tiki.control("POST", "send", &send.to_string()).await);
    let tries = answer["tries"].as_array().unwrap();
    let statuses: Vec<_> = tries.iter().map(|it| &it["reply"]["status"]).collect();
    assert_eq!(statuses, [502, 502, 200]);
    assert_eq!(gate.transaction("t-9").unwrap().0.status, Status::Success);
    assert_eq!(gate.counts().refused_signatures, 0);
}

#[tokio::test]
async fn the_control_api_refuses_what_it_does_not_understand() {
    let tiki = FakeTikiProcess::start(&[]);
    tiki.put("t-1", "100000").await;
    for (method, path, body, word) in [
        (
            "POST",
            "orders",
            r#"{"do":"reset_at_once","tims":2}"#,
            "`tims`",
        ),
        ("POST", "orders", r#"{"do":{"http":{"status":99}}}"#, "99"),
        ("PUT", "transactions", r#"[{"id":"t"}]"#, "`id`"),
        ("PUT", "transactions", "nothing", "can't be used"),
        ("GET", "seen?since=1", "", "after=N"),
        ("GET", "counts?x", "", "no query"),
        (
            "POST",
            "send",
            r#"{"url":"ftp://x","client":"c"}"#,
            "http://",
        ),
        (
            "POST",
            "send",
            r#"{"url":"http://x","client":"c"}"#,
            "unknown",
        ),
    ] {
        let answer = tiki.control(method, path, body).await;
        assert_eq!(answer.status, 400, "{path} {body}");
        assert!(answer.text().contains(word), "{}", answer.text());
    }
    assert_eq!(tiki.control("PATCH", "orders", "").await.status, 404);
    let all = FakeTikiProcess::worked(tiki.control("GET", "transactions", "").await);
    FakeTikiProcess::worked(tiki.control("PUT", "transactions", &all.to_string()).await);
    assert_eq!(all[0]["amount"], "100000");

    tiki.order(json!([{"do": "half_answer"}, {"do": "reset_at_once"}]))
        .await;
    let orders = FakeTikiProcess::worked(tiki.control("GET", "orders", "").await);
    assert_eq!(orders.as_array().unwrap().len(), 2);
    FakeTikiProcess::worked(tiki.control("DELETE", "orders", "").await);
    let answer = tiki.exchange(PartnerCall::status("t-1").bytes()).await;
    assert_eq!(answer.status, 200);
    assert!(tiki.seen().await.len() == 1, "control calls are not seen");
}

#[tokio::test]
async fn it_speaks_tls() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=tiki",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &path("key"), "-out", &path("certificate")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let certificate = path("certificate");
    let key = path("key");
    let options = ["--certificate", &certificate, "--private-key", &key];
    let tiki = FakeTikiProcess::start(&options);
    assert!(tiki.origin().starts_with("https://"));

    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&certificate).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = tokio::net::TcpStream::connect(tiki.address())
        .await
        .unwrap();
    let name = ServerName::IpAddress(tiki.address().ip().into());
    let connect = TlsConnector::from(Arc::new(config)).connect(name, socket);
    let mut stream = in_time("a handshake", connect).await.unwrap();
    let call = PartnerCall::status("t-1").bytes();
    let last = call.replacen("Host:", "Connection: close\r\nHost:", 1);
    stream.write_all(last.as_bytes()).await.unwrap();
    let mut answer = String::new();
    in_time("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""code":3"#));
}

#[tokio::test]
async fn one_in_this_process_is_called_by_its_own_kind() {
    let tiki = FakeTiki::start(Options::default().client(CLIENT, SECRET))
        .await
        .unwrap();
    let ipn = PartnerCall::ipn("t-1", "SUCCESS");
    let address = ListenAddress::Tcp(tiki.address());
    let ours = exchange(&address, ipn.bytes()).await;
    let url = tiki.base_url() + &ipn.path;
    let theirs = tiki.call(&Outgoing::post(url, ipn.body, CLIENT)).await;
    assert_eq!(theirs.unwrap().body, ours.text());
    tiki.stop().await;
    tiki.start_again().await.unwrap();
    assert_eq!(
        exchange(&address, "GET / HTTP/1.1\r\n\r\n").await.status,
        404
    );
    assert_eq!(tiki.seen_after(0).len(), 3);
}

#[test]
fn the_command_is_hidden_and_helps_with_an_example() {
    let help = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tikigate"))
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!help(&["--help"]).contains("fake-tiki"));
    let own = help(&["fake-tiki", "--help"]);
    assert!(own.contains("Example:") && own.contains("/_control/orders"));
}
