//! nginx and HAProxy, as Debian ships them, in the place of the backend: what do they read?
//!
//! Each stands in front of an origin that records what it is asked. The bytes that the gate sent are
//! sent to both as they are; the lists of requests must be the one that our strict reader finds.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tikigate::net::ListenAddress;

use crate::fuzzed::targets::strict::{self, Request};
use crate::support::backend::{Answer, Backend};
use crate::support::raw::RawClient;

const LAST: &str = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Both, each with its origin.
pub(super) struct Readers {
    nginx: Reader,
    haproxy: Reader,
}

impl Readers {
    /// Starts both.
    pub(super) async fn start() -> Self {
        Self {
            nginx: Reader::start("nginx", nginx).await,
            haproxy: Reader::start("haproxy", haproxy).await,
        }
    }

    /// Sends each stream to both; all must read in it what we read.
    pub(super) async fn agree_on(&self, streams: &[Vec<u8>]) {
        let mut read = 0;
        for stream in streams {
            for stream in [stream.clone(), kept_alive(stream)] {
                match self.read(&stream).await {
                    Ok(requests) => read += requests.len(),
                    Err(parted) => panic!("{parted}: {}", String::from_utf8_lossy(&stream)),
                }
            }
        }
        assert!(read > 0, "nothing was there to agree on");
        let changed = streams.iter().any(|stream| kept_alive(stream) != *stream);
        assert!(changed, "no call that the gate holds passed");
    }

    /// What everybody reads in this stream, or who reads something else.
    async fn read(&self, stream: &[u8]) -> Result<Vec<Request>, String> {
        let ours = strict::read(stream).map_err(|fault| format!("{fault:?}"))?;
        let ours: Vec<Request> = ours.into_iter().map(comparable).collect();
        for reader in [&self.nginx, &self.haproxy] {
            let theirs = reader.read(stream).await;
            if theirs.as_ref() != Ok(&ours) {
                return Err(format!("{} reads {theirs:?}", reader.name));
            }
        }
        Ok(ours)
    }
}

/// The same requests without an end of the connection behind one of them, where nobody would look for more.
fn kept_alive(stream: &[u8]) -> Vec<u8> {
    const CLOSE: &[u8] = b"\r\nconnection: close\r\n";
    let mut bytes = stream.to_vec();
    while let Some(at) = bytes
        .windows(CLOSE.len())
        .position(|window| window == CLOSE)
    {
        bytes.drain(at..at + CLOSE.len() - 2);
    }
    bytes
}

/// A server's process in front of a recording origin; it ends with the value.
struct Reader {
    name: &'static str,
    process: Child,
    address: ListenAddress,
    origin: Backend,
    _directory: TempDir,
}

impl Reader {
    /// `command` gets a directory, the port to listen on, and the origin's address.
    async fn start(name: &'static str, command: fn(&Path, u16, &str) -> Command) -> Self {
        let origin = Backend::start(|_| Answer::success().into()).await;
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let at = origin.address().to_string();
        let mut command = command(directory.path(), port, &at);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("{name} can't be started ({error}): tests/run installs it")
        });
        let deadline = Instant::now() + Duration::from_secs(15);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{name} does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self {
            name,
            process,
            address: format!("127.0.0.1:{port}").parse().unwrap(),
            origin,
            _directory: directory,
        }
    }

    /// The requests that reach the origin when these bytes are sent, and [`LAST`] behind them: who waits for
    /// more of a body takes that for it.
    ///
    /// # Errors
    /// What reached it, if that can't be read strictly; or `LAST` did not, and nothing said that the
    /// connection was to end before.
    async fn read(&self, stream: &[u8]) -> Result<Vec<Request>, String> {
        let before = self.origin.requests().len();
        let mut client = RawClient::connect(&self.address).await;
        client.send(stream).await;
        client.send(LAST).await;
        client.read_to_end().await;
        let seen = self.origin.requests().split_off(before);
        let bytes: Vec<u8> = seen
            .iter()
            .flat_map(|seen| [&*seen.raw_head, &seen.body].concat())
            .collect();
        let Ok(requests) = strict::read(&bytes) else {
            return Err(String::from_utf8_lossy(&bytes).into_owned());
        };
        let mut requests: Vec<Request> = requests.into_iter().map(comparable).collect();
        let closes = String::from_utf8_lossy(stream).contains("\r\nconnection: close\r\n");
        if requests.last().is_some_and(|last| last.target == "/last") {
            requests.pop();
        } else if !closes {
            return Err(format!("no end behind {requests:?}"));
        }
        Ok(requests)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Servers put headers into an order of their own, and `Connection` is between two neighbours.
fn comparable(mut request: Request) -> Request {
    request.headers.retain(|(name, _)| name != "connection");
    request.headers.sort();
    request
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Everything goes on as it was read: no header is dropped for its name, no path is tidied.
fn nginx(directory: &Path, port: u16, origin: &str) -> Command {
    let at = directory.display();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr crit;\n\
         events {{ }}\n\
         http {{ access_log off; underscores_in_headers on; ignore_invalid_headers off; merge_slashes off;\n\
         client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{origin};\n\
         proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Connection ''; }} }} }}"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("nginx");
    command
        .args(["-e", "stderr", "-p"])
        .arg(directory)
        .arg("-c")
        .arg(file);
    command
}

fn haproxy(directory: &Path, port: u16, origin: &str) -> Command {
    let config = format!(
        "global\n  maxconn 100\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
         frontend gate\n  bind 127.0.0.1:{port}\n  default_backend origin\n\
         backend origin\n  server one {origin}\n"
    );
    let file = directory.join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    command
}

/// Controls: what the gate doesn't send, since readers part over it.
mod tests {
    use super::*;

    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";

    #[tokio::test]
    async fn readers_agree_on_plain_requests() {
        let readers = Readers::start().await;
        let stream = b"POST /a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}\
            GET /b?c=//..%2f HTTP/1.1\r\nHost: x\r\nX-B: 2\r\nAccept: \xff\r\n\r\n";
        let read = readers.read(stream).await.unwrap();
        let targets: Vec<&str> = read.iter().map(|request| &*request.target).collect();
        assert_eq!(targets, ["/a", "/b?c=//..%2f"]);
    }

    #[tokio::test]
    async fn readers_part_over_what_is_not_plain() {
        let readers = Readers::start().await;
        for stream in [
            // A length and a coding.
            format!(
                "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
            // A coding that not everybody knows.
            format!(
                "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
            // Characters that are none of a target's.
            "GET /a?b=\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            // A lone line feed.
            format!("POST /a HTTP/1.1\nHost: x\nContent-Length: 2\n\n{{}}{HIDDEN}"),
        ] {
            assert!(readers.read(stream.as_bytes()).await.is_err(), "{stream:?}");
        }
    }

    /// A request too many, and a body that is another one, don't go unnoticed.
    #[tokio::test]
    async fn other_lists_are_told_apart() {
        let readers = Readers::start().await;
        let one = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        let two = format!("{one}{HIDDEN}");
        let ours = readers.read(one.as_bytes()).await.unwrap();
        for other in [
            two,
            one.replace("{}", "[]"),
            one.replace("/a", "/b"),
            one.replace("Host", "X: 1\r\nHost"),
        ] {
            for reader in [&readers.nginx, &readers.haproxy] {
                assert_ne!(
                    reader.read(other.as_bytes()).await,
                    Ok(ours.clone()),
                    "{other:?}"
                );
            }
        }
    }
}
