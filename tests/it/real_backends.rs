//! The gate in front of servers that partners really run: nginx, and PHP as old as they come.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::gate::{TestGate, ipn, refund};

/// A server's process; it ends with the value.
struct Server {
    process: Child,
    port: u16,
    _directory: TempDir,
}

impl Server {
    fn start(directory: TempDir, port: u16, mut command: Command) -> Self {
        let program = command.get_program().to_owned();
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{program:?} can't be started ({error}): tests/run installs it")
            });
        let server = Self {
            process,
            port,
            _directory: directory,
        };
        let deadline = Instant::now() + Duration::from_secs(15);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{program:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn nginx() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let (at, port) = (directory.path().display().to_string(), free_port());
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr crit;\n\
         events {{ }}\n\
         http {{ access_log off; default_type application/json;\n\
         client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen 127.0.0.1:{port};\n\
         location = /tiki/ipn {{ return 200 '{{\"data\":{{\"status\":\"success\"}}}}'; }}\n\
         location = /tiki/refund {{ return 500 '{{\"data\":null,\"error\":{{\"code\":\"1\",\"message\":\"invalid transaction id\"}}}}'; }} }} }}"
    );
    fs::write(directory.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    command
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(directory.path());
    command.arg("-c").arg(directory.path().join("nginx.conf"));
    Server::start(directory, port, command)
}

/// A backend that pays back as often as it is asked, and writes each payment into a file.
const LEGACY_PHP: &str = r#"<?php
$message = json_decode(file_get_contents('php://input'), true);
if (isset($message['request_id'])) {
    $line = $message['request_id'] . ' ' . $message['transaction_amount'] . ' '
        . $_SERVER['HTTP_IDEMPOTENCY_KEY'] . ' ' . $_SERVER['HTTP_X_TIKIGATE_ATTEMPT'] . "\n";
    file_put_contents(__DIR__ . '/paid', $line, FILE_APPEND);
    if ($message['reason'] === 'die') { posix_kill(getmypid(), 9); }
}
header('Content-Type: application/json');
header('X-Powered-By: PHP/4');
header('Set-Cookie: PHPSESSID=1');
echo '{"data":{"status":"success"}}';
"#;

fn php() -> (Server, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let script = directory.path().join("legacy.php");
    fs::write(&script, LEGACY_PHP).unwrap();
    let paid = directory.path().join("paid");
    let mut command = Command::new("php");
    command
        .arg("-S")
        .arg(format!("127.0.0.1:{port}"))
        .arg(&script);
    (Server::start(directory, port, command), paid)
}

fn payments(paid: &Path) -> String {
    fs::read_to_string(paid).unwrap_or_default()
}

#[tokio::test]
async fn nginx_answers_notices_and_declines_a_refund_in_the_platforms_words() {
    let server = nginx();
    let gate = TestGate::start(&server.url()).await;
    for number in 0..20 {
        let answer = gate
            .post("/tiki/ipn", &ipn(&format!("p-{number}"), "1000"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.text(), r#"{"data":{"status":"success"}}"#);
        assert_eq!(answer.header("server"), None);
    }
    // "Not applied": Tiki gets the 500 as it is, and its next try is sent again.
    for attempt in 1..=2 {
        let answer = gate.post("/tiki/refund", &refund("r-1", "1000")).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (500, Some("1"))
        );
        assert_eq!(gate.record("r-1").await.unwrap().attempt, attempt);
    }
}

#[tokio::test]
async fn php_pays_once_however_often_it_is_asked() {
    let (server, paid) = php();
    let gate = TestGate::start(&server.url()).await;
    let body = refund("r-1", "150000");
    for _ in 0..5 {
        let answer = gate.post("/tiki/refund", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("set-cookie"), None);
        assert_eq!(answer.header("x-powered-by"), None);
    }
    assert_eq!(payments(&paid), "r-1 150000 r-1 1\n");
}

#[tokio::test]
async fn php_that_is_killed_while_it_pays_is_not_asked_again() {
    let (server, paid) = php();
    let gate = TestGate::start(&server.url()).await;
    let body = refund("r-1", "150000").replace("Khách đổi ý", "die");
    let first = gate.post("/tiki/refund", &body).await;
    assert_eq!(
        (first.status, first.error_code().as_deref()),
        (502, Some("upstream_failed"))
    );
    let second = gate.post("/tiki/refund", &body).await;
    assert_eq!(
        (second.status, second.error_code().as_deref()),
        (500, Some("outcome_unknown"))
    );
    assert_eq!(payments(&paid), "r-1 150000 r-1 1\n");
}
