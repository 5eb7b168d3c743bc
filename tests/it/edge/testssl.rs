//! What an auditor's tool (testssl.sh) finds at the listener.
//!
//! With `TIKIGATE_TESTSSL=full` all of its checks run, against an RSA certificate too.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::gate::{TestGate, usual};

/// Findings that are not the gate's, each with its reason.
const ALLOWED: &[(&str, &str)] = &[
    (
        "engine_problem",
        "about the OpenSSL that the tool runs with",
    ),
    (
        "RC4",
        "the same: it can't speak RC4, so that only its own sockets looked for it",
    ),
    (
        "sessionresumption_ticket",
        "says at most that it could not look: the tool may hang up before a ticket of TLS 1.3 arrives",
    ),
    (
        "cert_revocation",
        "a partner's own authority publishes no revocations",
    ),
    ("HSTS", "for browsers; Tiki's servers call"),
    ("security_headers", "for browsers; Tiki's servers call"),
    (
        "cert_chain_of_trust",
        "a partner's own authority is in no public store",
    ),
    ("overall_grade", "follows from the others"),
];

/// Checks of the short run: protocols, ciphers, certificate and defaults, preferences, forward secrecy,
/// all vulnerabilities, renegotiation.
const SHORT: &[&str] = &["--fast", "-p", "-s", "-S", "-P", "-f", "-U", "-R"];

/// A key of this kind with a certificate of an authority of its own, as an operator makes them.
fn make_certificate(directory: &Path, key: &str) {
    let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n\
                      keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n";
    std::fs::write(directory.join("extensions"), extensions).unwrap();
    for arguments in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 825 \
         -subj /CN=partner",
        &format!("req -newkey {key} -nodes -keyout gate.key -out gate.csr -subj /CN=localhost"),
        "x509 -req -in gate.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out gate.crt -days 90 \
         -extfile extensions",
    ] {
        let made = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(directory)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl {arguments}: {said}");
    }
}

/// Every finding that is worse than good, and how many there were in all.
async fn findings(key: &str, checks: &[&str]) -> (Vec<Value>, usize) {
    let directory = tempfile::tempdir().unwrap();
    make_certificate(directory.path(), key);
    let path = |name: &str| directory.path().join(name).display().to_string();
    let tls = format!(
        "workers = 2\ntls = {{ certificate = \"{}\", private_key = \"{}\" }}",
        path("gate.crt"),
        path("gate.key")
    );
    let gate = TestGate::with(&usual("http://127.0.0.1:1").replace("workers = 2", &tls)).await;
    let port = gate.address().to_string();
    let port = port.rsplit(':').next().unwrap();
    let out = tokio::task::spawn_blocking({
        let (url, checks) = (format!("https://localhost:{port}"), checks.join(" "));
        let (authority, report) = (path("ca.crt"), path("report.json"));
        move || {
            Command::new("testssl")
                .args([
                    "--quiet",
                    "--color=0",
                    "--warnings=off",
                    "--nodns=none",
                    "--ip=127.0.0.1",
                ])
                .args(["--connect-timeout=10", "--openssl-timeout=10"])
                .args(["--add-ca", &authority, "--jsonfile", &report])
                .args(checks.split_whitespace())
                .arg(url)
                .output()
                .unwrap()
        }
    });
    let out = out.await.unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let report = std::fs::read_to_string(path("report.json")).unwrap_or_default();
    let all: Vec<Value> =
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {said}"));
    let count = all.len();
    let bad = all.into_iter().filter(|finding| {
        let (id, severity) = (finding["id"].as_str(), finding["severity"].as_str());
        let allowed = ALLOWED.iter().any(|(allowed, _)| Some(*allowed) == id);
        !allowed && !matches!(severity, Some("OK" | "INFO"))
    });
    (bad.collect(), count)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditors_tool_finds_nothing() {
    const EC: &str = "ec -pkeyopt ec_paramgen_curve:P-256";
    let full = std::env::var("TIKIGATE_TESTSSL").is_ok_and(|value| value == "full");
    let runs: &[(&str, &[&str])] = match full {
        false => &[(EC, SHORT)],
        true => &[(EC, &[]), ("rsa:2048", &[]), ("rsa:2048", SHORT)],
    };
    for (key, checks) in runs {
        let (bad, count) = findings(key, checks).await;
        assert!(
            count > 50,
            "only {count} findings: the tool did not get through"
        );
        assert!(bad.is_empty(), "{key}: {bad:#?}");
    }
}
