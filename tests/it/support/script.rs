//! What a scripted backend can do; [`Backend`](super::backend::Backend) does it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// What the backend does with a request that it has read.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Answers, and reads the next request unless the caller asked for `Connection: close`.
    Answer(Answer),
    /// Sends these bytes, then does the other.
    Raw(Vec<u8>, Then),
    /// Answers a byte at a time, with a pause after each.
    Drip(Answer, Duration),
    /// Sends this head, then a body of `x` until the caller closes.
    Flood(Vec<u8>),
    /// Closes without an answer.
    Close,
    /// Resets the connection without an answer.
    Reset,
    /// Never answers; sees when the caller closes.
    Silence,
    /// Waits for the hold's release, then does the other. Ends if the caller closes meanwhile.
    Held(Hold, Box<Behaviour>),
    /// Does the one, and if the connection goes on, the other.
    Both(Box<Behaviour>, Box<Behaviour>),
}

/// What follows raw bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    /// The next request is read.
    Continue,
    /// The connection is closed.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing, until the caller closes.
    Silence,
}

/// What the backend does with a connection before it has read a whole request.
#[derive(Clone)]
pub(crate) enum OnConnect {
    /// Reads requests and asks the script about each.
    Serve,
    /// Closes without reading.
    Close,
    /// Resets without reading.
    Reset,
    /// Never reads and never answers.
    Ignore,
    /// Sends these bytes unasked.
    Say(Vec<u8>, Then),
    /// Reads one request's head and then does this, without reading its body.
    AfterHead(Behaviour),
}

/// An answer in good order.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    pub(super) framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    UntilClose,
}

impl Answer {
    /// An answer with an empty body.
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            fields: Vec::new(),
            body: Vec::new(),
            framing: Framing::Length,
        }
    }

    /// An answer with a JSON body.
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::new(status)
            .header("Content-Type", "application/json")
            .body(body)
    }

    /// The platform's success.
    pub(crate) fn success() -> Self {
        Self::json(200, r#"{"data":{"status":"success"}}"#)
    }

    /// Adds a header field.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the body in two chunks (in one, if it is a single byte).
    pub(crate) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Ends the body with the connection.
    pub(crate) fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    /// Its bytes on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 {} Scripted\r\n", self.status).into_bytes();
        for (name, value) in &self.fields {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        match self.framing {
            Framing::Length => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", self.body.len()).bytes());
                bytes.extend(&self.body);
            }
            Framing::Chunked => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                let (first, second) = self.body.split_at(self.body.len() / 2);
                for chunk in [first, second] {
                    if !chunk.is_empty() {
                        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                        bytes.extend(chunk);
                        bytes.extend(b"\r\n");
                    }
                }
                bytes.extend(b"0\r\n\r\n");
            }
            Framing::UntilClose => {
                bytes.extend(b"Connection: close\r\n\r\n");
                bytes.extend(&self.body);
            }
        }
        bytes
    }
}

impl From<Answer> for Behaviour {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

impl Behaviour {
    /// A head that promises a body, then the end.
    pub(crate) fn head_only() -> Self {
        Self::cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    }

    /// Half of a head, then the end.
    pub(crate) fn half_a_head() -> Self {
        Self::cut(b"HTTP/1.1 200 OK\r\nContent-Le")
    }

    /// Half of a body with a length, then the end.
    pub(crate) fn half_a_body() -> Self {
        Self::cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
    }

    /// A chunked body without its last chunk, then the end.
    pub(crate) fn half_the_chunks() -> Self {
        Self::cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
    }

    /// Bytes that are no HTTP, then the end.
    pub(crate) fn malformed() -> Self {
        Self::cut(b"\x16\x03\x01 this is no answer\r\n\r\n")
    }

    /// `101 Switching Protocols`, then silence.
    pub(crate) fn switching_protocols() -> Self {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        Self::Raw(head.to_vec(), Then::Silence)
    }

    /// Interim answers (100, 103), then this one.
    pub(crate) fn interim_then(answer: Answer) -> Self {
        let mut bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: 1\r\n\r\n".to_vec();
        bytes.extend(answer.bytes());
        Self::Raw(bytes, Then::Continue)
    }

    /// This answer with surplus bytes after it; the connection stays open.
    pub(crate) fn with_surplus(answer: Answer, surplus: &[u8]) -> Self {
        let mut bytes = answer.bytes();
        bytes.extend(surplus);
        Self::Raw(bytes, Then::Continue)
    }

    /// This answer, then the end.
    pub(crate) fn then_close(answer: Answer) -> Self {
        Self::Raw(answer.bytes(), Then::Close)
    }

    /// A body far longer than anybody keeps, with its true length in the head.
    pub(crate) fn huge() -> Self {
        Self::Flood(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n".to_vec())
    }

    /// This, once `hold` is released.
    pub(crate) fn held(self, hold: &Hold) -> Self {
        Self::Held(hold.clone(), Box::new(self))
    }

    /// This, and after it the other, without reading a request in between.
    pub(crate) fn and_then(self, next: Behaviour) -> Self {
        Self::Both(Box::new(self), Box::new(next))
    }

    fn cut(bytes: &[u8]) -> Self {
        Self::Raw(bytes.to_vec(), Then::Close)
    }
}

/// Keeps requests waiting until it is released; then it lets everything through.
#[derive(Clone, Debug)]
pub(crate) struct Hold(Arc<watch::Sender<bool>>);

impl Hold {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets go of all that wait, and of all that come later.
    pub(crate) fn release(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn released(&self) {
        let _ = self.0.subscribe().wait_for(|released| *released).await;
    }
}
