//! A client that sends exactly the bytes it is given and reads whole answers.
//!
//! ```ignore
//! let mut client = RawClient::connect(&address).await;
//! client.send("GET / HTTP/1.1\r\nHost: gate\r\n\r\n").await;
//! let answer = client.read_answer().await;
//! assert_eq!(answer.status, 404);
//! assert!(client.is_closed().await);
//! ```
//! Whatever waits, waits for [`PATIENCE`](super::PATIENCE) and then fails the test.

use std::time::Duration;

use serde_json::Value;
use tikigate::net::ListenAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::in_time;
use super::wire::{self, Head, Socket};

/// One connection.
pub(crate) struct RawClient {
    socket: Socket,
    unread: Vec<u8>,
    ended: bool,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct RawAnswer {
    /// The status; 1xx too, each is an answer of its own here.
    pub(crate) status: u16,
    /// Status line and header fields as they came.
    pub(crate) head: Head,
    /// The body, without its chunked coding.
    pub(crate) body: Vec<u8>,
}

impl RawAnswer {
    /// The value of a header field that must occur at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// `error.code` of the platform's envelope.
    pub(crate) fn error_code(&self) -> Option<String> {
        self.json()["error"]["code"].as_str().map(str::to_owned)
    }
}

impl RawClient {
    /// Connects.
    pub(crate) async fn connect(address: &ListenAddress) -> Self {
        let socket = in_time("a connection", Socket::connect(address))
            .await
            .unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        Self {
            socket,
            unread: Vec::new(),
            ended: false,
        }
    }

    /// Connects to a server that may be gone.
    pub(crate) async fn connect_if_there(address: &ListenAddress) -> Option<Self> {
        let socket = in_time("a connection", Socket::connect(address))
            .await
            .ok()?;
        Some(Self {
            socket,
            unread: Vec::new(),
            ended: false,
        })
    }

    /// Sends these bytes. What the other side no longer takes is dropped: a gate may answer and
    /// close before it has read everything.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = in_time("room to send", self.socket.write_all(bytes.as_ref())).await;
    }

    /// Sends each piece as a segment of its own, letting other tasks run in between.
    pub(crate) async fn send_pieces(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.send(piece).await;
            tokio::task::yield_now().await;
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn end_sending(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// Reads one whole answer to a request that was not HEAD.
    pub(crate) async fn read_answer(&mut self) -> RawAnswer {
        match in_time("an answer", self.try_read_answer(false)).await {
            Some(answer) => answer,
            None => panic!(
                "the connection ended after {:?}",
                String::from_utf8_lossy(&self.unread)
            ),
        }
    }

    /// Reads the answer to a HEAD request: without a body, whatever its head says.
    pub(crate) async fn read_answer_to_head(&mut self) -> RawAnswer {
        in_time("an answer", self.try_read_answer(true))
            .await
            .expect("a whole answer")
    }

    /// Reads one whole answer; none if the connection ends before.
    pub(crate) async fn read_answer_or_end(&mut self) -> Option<RawAnswer> {
        in_time("an answer or the end", self.try_read_answer(false)).await
    }

    /// Waits for the connection's end; false if bytes come instead.
    pub(crate) async fn is_closed(&mut self) -> bool {
        in_time("the connection's end", async {
            while self.unread.is_empty() && !self.ended {
                self.fill().await;
            }
        })
        .await;
        self.unread.is_empty()
    }

    /// Whether the connection is open and nothing has come. Doesn't wait.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let _ = tokio::time::timeout(std::time::Duration::ZERO, self.fill()).await;
        self.unread.is_empty() && !self.ended
    }

    /// Everything until the connection's end.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        in_time("the connection's end", async {
            while !self.ended {
                self.fill().await;
            }
        })
        .await;
        std::mem::take(&mut self.unread)
    }

    async fn try_read_answer(&mut self, to_head: bool) -> Option<RawAnswer> {
        let end = loop {
            if let Some(end) = wire::end_of_head(&self.unread) {
                break end;
            }
            self.fill_more().await?;
        };
        let head = Head::parse(&self.take(end));
        let status = head
            .start_line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {:?}", head.start_line));
        let bodiless = to_head || matches!(status, 100..=199 | 204 | 304);
        let body = if bodiless {
            Vec::new()
        } else if head.is_chunked() {
            self.read_chunks().await?
        } else if let Some(length) = head.content_length() {
            self.read_exactly(length).await?
        } else {
            while !self.ended {
                self.fill().await;
            }
            std::mem::take(&mut self.unread)
        };
        Some(RawAnswer { status, head, body })
    }

    async fn read_chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = self.read_line().await?;
            let size = usize::from_str_radix(&size, 16).expect("a chunk's size");
            if size == 0 {
                while !self.read_line().await?.is_empty() {}
                return Some(body);
            }
            body.extend(self.read_exactly(size).await?);
            assert_eq!(self.read_line().await?, "", "a chunk ends with a line end");
        }
    }

    async fn read_line(&mut self) -> Option<String> {
        let end = loop {
            if let Some(end) = wire::find(&self.unread, b"\r\n") {
                break end;
            }
            self.fill_more().await?;
        };
        let mut line = self.take(end + 2);
        line.truncate(end);
        Some(String::from_utf8(line).expect("a line in UTF-8"))
    }

    async fn read_exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.unread.len() < length {
            self.fill_more().await?;
        }
        Some(self.take(length))
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.unread.split_off(length);
        std::mem::replace(&mut self.unread, rest)
    }

    async fn fill_more(&mut self) -> Option<()> {
        self.fill().await;
        (!self.ended).then_some(())
    }

    /// Reads once. A reset is an end too.
    async fn fill(&mut self) {
        if self.ended {
            return;
        }
        let read = self.socket.read_buf(&mut self.unread).await;
        self.ended = matches!(read, Ok(0) | Err(_));
    }
}

/// Sends `bytes` over a connection of its own and reads one answer.
pub(crate) async fn exchange(address: &ListenAddress, bytes: impl AsRef<[u8]>) -> RawAnswer {
    let mut client = RawClient::connect(address).await;
    client.send(bytes).await;
    client.read_answer().await
}

/// The same with a server that may be gone at any moment: none if it doesn't take the connection, or
/// if no whole answer came `within` this time.
pub(crate) async fn exchange_if_there(
    address: &ListenAddress,
    bytes: impl AsRef<[u8]>,
    within: Duration,
) -> Option<RawAnswer> {
    let exchange = async {
        let mut client = RawClient::connect_if_there(address).await?;
        client.send(bytes).await;
        client.try_read_answer(false).await
    };
    tokio::time::timeout(within, exchange).await.ok()?
}

/// Checks of the two sides against each other: what they miss, the tests that use them miss.
mod tests {
    use super::*;
    use crate::support::backend::{Answer, Backend, Behaviour, Then};

    const REQUEST: &str = "POST /a HTTP/1.1\r\nHost: x\r\nX: 1\r\nContent-Length: 2\r\n\r\n{}";

    #[tokio::test]
    async fn whole_answers_are_read_in_every_framing() {
        let backend = Backend::start(|seen| {
            let answer = Answer::json(200, "0123456789");
            match seen.number {
                0 => answer.into(),
                1 => answer.chunked().into(),
                2 => Behaviour::interim_then(Answer::new(204)),
                _ => answer.until_close().into(),
            }
        })
        .await;
        let mut client = RawClient::connect(backend.address()).await;
        let mut statuses = Vec::new();
        for request in 0..4 {
            client
                .send_pieces(&[&REQUEST.as_bytes()[..9], &REQUEST.as_bytes()[9..]])
                .await;
            if request == 2 {
                statuses.push(client.read_answer().await.status);
                statuses.push(client.read_answer().await.status);
            }
            let answer = client.read_answer().await;
            statuses.push(answer.status);
            if request != 2 {
                assert_eq!(answer.text(), "0123456789");
                assert_eq!(answer.header("content-type"), Some("application/json"));
            }
        }
        assert_eq!(statuses, [200, 200, 100, 103, 204, 200]);
        assert!(client.is_closed().await);
        assert_eq!(backend.bytes(), REQUEST.repeat(4).into_bytes());
        let seen = &backend.requests()[3];
        assert_eq!((seen.method(), seen.target()), ("POST", "/a"));
        assert_eq!((seen.header("x"), seen.text()), (Some("1"), "{}"));
    }

    #[tokio::test]
    async fn a_cut_answer_is_none_and_an_open_connection_is_not_closed() {
        let backend = Backend::start(|seen| match seen.connection {
            0 => Behaviour::half_a_body(),
            1 => Behaviour::Reset,
            _ => Behaviour::Raw(Answer::success().bytes(), Then::Silence),
        })
        .await;
        for _ in 0..2 {
            let mut client = RawClient::connect(backend.address()).await;
            client.send(REQUEST).await;
            assert!(client.read_answer_or_end().await.is_none());
        }
        let mut client = RawClient::connect(backend.address()).await;
        client.send(REQUEST).await;
        assert_eq!(
            client.read_answer().await.json()["data"]["status"],
            "success"
        );
        assert!(client.is_silent().await);
        client.end_sending().await;
        assert!(client.is_closed().await);
    }
}
