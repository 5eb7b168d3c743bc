//! TLS to Tiki: who can't prove to be Tiki hears nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tikigate::cli::fake_tiki::{Action, FakeTiki, Options, Order, Transaction, Wanted};

use super::lab::{config, notice, post};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, SECRET, TestGate};
use crate::support::raw::exchange;
use crate::support::{gate::start_time, in_time};

/// A certificate authority, and certificates of it.
struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let authority = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        authority.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN={name}"
        ));
        authority
    }

    /// A certificate for this name, and whether it has expired; with its key.
    fn certificate(&self, name: &str, expired: bool) -> (PathBuf, PathBuf) {
        let file = |ending: &str| {
            self.directory
                .path()
                .join(format!("{name}-{expired}.{ending}"))
        };
        std::fs::write(file("ext"), format!("subjectAltName={name}\n")).unwrap();
        let path = |ending| file(ending).display().to_string();
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -keyout {} -out {} -subj /CN=tiki",
            path("key"),
            path("csr")
        ));
        let days = match expired {
            true => "-not_before 20200101000000Z -not_after 20200201000000Z",
            false => "-days 30",
        };
        // `x509 -req` of this OpenSSL knows no dates in the past; `ca` does.
        if expired {
            std::fs::write(self.directory.path().join("index.txt"), "").unwrap();
            std::fs::write(self.directory.path().join("serial"), "01\n").unwrap();
            std::fs::write(
                self.directory.path().join("ca.cnf"),
                "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\n\
                 default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n",
            )
            .unwrap();
            self.openssl(&format!(
                "ca -batch -config ca.cnf -cert ca.crt -keyfile ca.key -in {} -out {} -extfile {} \
                 -startdate 20200101000000Z -enddate 20200201000000Z -notext",
                path("csr"),
                path("crt"),
                path("ext")
            ));
        } else {
            self.openssl(&format!(
                "x509 -req -in {} -CA ca.crt -CAkey ca.key -CAcreateserial -out {} {days} -extfile {}",
                path("csr"),
                path("crt"),
                path("ext")
            ));
        }
        (file("crt"), file("key"))
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {said}");
    }
}

async fn tiki(tls: (PathBuf, PathBuf)) -> FakeTiki {
    let options = Options {
        tls: Some(tls),
        clock: std::sync::Arc::new(|| {
            let since = start_time().duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::try_from(since.as_millis()).unwrap()
        }),
        ..Options::default()
    };
    let tiki = FakeTiki::start(options.client(CLIENT, SECRET))
        .await
        .unwrap();
    let known = Transaction::pending("T-1", "p-T-1", "1000", CLIENT);
    tiki.put_transaction(known.unwrap());
    tiki
}

async fn gate(tiki: &FakeTiki, ca: &Path) -> TestGate {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let keys = format!("ca = \"{}\"", ca.display());
    TestGate::with(&config(&backend.url(), &tiki.base_url(), &keys, "")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_over_tls_that_is_kept_open() {
    let authority = Authority::new("authority");
    let tiki = tiki(authority.certificate("IP:127.0.0.1", false)).await;
    let gate = gate(&tiki, &authority.path().join("ca.crt")).await;
    for number in 0..30 {
        let answer = exchange(gate.outbound_address(), post("/webview", &[], "{}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-tikigate-attempts"), Some("1"), "{number}");
    }
    assert_eq!(tiki.counts().webview, 30);
    assert_eq!(
        tiki.counts().connections,
        1,
        "session tickets end no connection"
    );
    // What Tiki closes meanwhile is noticed before it is used.
    tiki.start_again().await.unwrap();
    let answer = exchange(gate.outbound_address(), post("/webview", &[], "{}")).await;
    assert_eq!(
        (answer.status, answer.header("x-tikigate-attempts")),
        (200, Some("1"))
    );
}

/// More than TLS takes at once: all of it arrives, or it counts as sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_go_over_tls_whole_or_count_as_sent() {
    let authority = Authority::new("authority");
    let tiki = tiki(authority.certificate("IP:127.0.0.1", false)).await;
    let backend = Backend::start(|_| Answer::success().into()).await;
    let keys = format!(
        "ca = \"{}\"\nbody_limit = \"4MiB\"",
        authority.path().join("ca.crt").display()
    );
    let gate = TestGate::with(&config(&backend.url(), &tiki.base_url(), &keys, "")).await;
    for size in [1, 20_000, 70_000, 300_000, 2_000_000] {
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(size));
        let answer = exchange(gate.outbound_address(), post("/webview", &[], &body)).await;
        assert_eq!(answer.status, 200, "{size}: {}", answer.text());
    }
    // Tiki breaks off while most of it is still to come.
    for _ in 0..5 {
        let reset = Order::new(Wanted::Webview, Action::ResetAtOnce);
        tiki.order(reset).unwrap();
        let before = tiki.counts().webview;
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(3_000_000));
        let answer = exchange(gate.outbound_address(), post("/webview", &[], &body)).await;
        assert_eq!(answer.error_code().as_deref(), Some("upstream_failed"));
        assert_eq!(answer.header("x-tikigate-attempts"), Some("1"));
        assert_eq!(tiki.counts().webview, before + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_not_prove_to_be_tiki_is_sent_nothing_and_asked_again() {
    let authority = Authority::new("authority");
    let stranger = Authority::new("stranger");
    let ca = authority.path().join("ca.crt");
    for (what, certificate, ca, words) in [
        (
            "name",
            authority.certificate("DNS:elsewhere.example", false),
            &ca,
            "not valid for",
        ),
        (
            "expired",
            authority.certificate("IP:127.0.0.1", true),
            &ca,
            "expired",
        ),
        (
            "untrusted",
            stranger.certificate("IP:127.0.0.1", false),
            &ca,
            "UnknownIssuer",
        ),
    ] {
        let tiki = tiki(certificate).await;
        let gate = gate(&tiki, ca).await;
        let answer = exchange(gate.outbound_address(), post("/webview", &[], "{}")).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (502, Some("upstream_unreachable")),
            "{what}"
        );
        assert!(answer.text().contains("connect_tls"), "{}", answer.text());
        let answer = exchange(
            gate.outbound_address(),
            post("/payment/ipn", &[], &notice("T-1", "1000", "SUCCESS")),
        )
        .await;
        assert_eq!(answer.status, 202);
        let tried = async {
            while gate
                .metric("tikigate_outbox_attempts_total{result=\"not_sent\"}")
                .await
                < 1.0
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time("a try of the outbox", tried).await;
        assert_eq!(tiki.counts().calls, 0, "{what}: not a byte of a call");
        let shown = shown(&gate).await;
        let detail = shown["events"][1]["detail"].as_str().unwrap();
        assert!(
            detail.contains("connect_tls") && detail.contains(words),
            "{what}: {detail}"
        );
        assert_eq!(gate.metric("tikigate_outbox_pending").await, 1.0);
        let ready = exchange(
            gate.admin_address(),
            "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        assert!(
            ready.text().contains("Tiki is out of reach for wallet"),
            "{}",
            ready.text()
        );
    }
}

/// The first delivery, as the admin API shows it.
async fn shown(gate: &TestGate) -> serde_json::Value {
    let token = std::fs::read_to_string(gate.directory().join("admin.token")).unwrap();
    let request = format!(
        "GET /api/outbox/out-1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token.trim()
    );
    let host = gate.admin_address().to_string();
    let request = request.replace("Host: localhost", &format!("Host: {host}"));
    exchange(gate.admin_address(), request).await.json()["data"].clone()
}
