//! As much HTTP/1.1 as a server needs that is to break it on order: a request is read, an answer's
//! bytes are made, and the socket stays in the hand of whoever writes them.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::signature;

const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 4 * 1024 * 1024;
const MAX_HEADERS: usize = 100;

/// A connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket below.
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for tokio_rustls::server::TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// A request's head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) keep_alive: bool,
}

/// Why there is no request.
#[derive(Debug)]
pub(super) enum NoRequest {
    /// The connection ended, or broke.
    Ended,
    /// It is to be refused with this status and sentence, and the connection closed.
    Refused(u16, String),
}

impl From<io::Error> for NoRequest {
    fn from(_: io::Error) -> Self {
        Self::Ended
    }
}

fn refused<T>(status: u16, sentence: &str) -> Result<T, NoRequest> {
    Err(NoRequest::Refused(status, sentence.to_owned()))
}

/// Reads a head; what came after it stays in `buffer`.
pub(super) async fn read_head(
    stream: &mut dyn Stream,
    buffer: &mut BytesMut,
) -> Result<Head, NoRequest> {
    loop {
        if let Some((head, length)) = parse_head(buffer)? {
            buffer.advance(length);
            return Ok(head);
        }
        if buffer.len() > MAX_HEAD {
            return refused(431, "the head is too large");
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(NoRequest::Ended);
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, NoRequest> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return refused(400, &format!("this is no HTTP: {error}")),
    };
    let headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|field| {
            let value = String::from_utf8_lossy(field.value).into_owned();
            (field.name.to_owned(), value)
        })
        .collect();
    let says_close = signature::all(&headers, "connection")
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("close"));
    let head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        keep_alive: request.version == Some(1) && !says_close,
        headers,
    };
    Ok(Some((head, length)))
}

/// Reads the body that a head declares. Chunks are refused.
pub(super) async fn read_body(
    stream: &mut dyn Stream,
    buffer: &mut BytesMut,
    head: &Head,
) -> Result<Bytes, NoRequest> {
    let length = body_length(head)?;
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(NoRequest::Ended);
        }
    }
    Ok(buffer.split_to(length).freeze())
}

fn body_length(head: &Head) -> Result<usize, NoRequest> {
    if signature::all(&head.headers, "transfer-encoding")
        .next()
        .is_some()
    {
        return refused(400, "a body has to come with its length, not in chunks");
    }
    let mut lengths = signature::all(&head.headers, "content-length");
    let length = match (lengths.next(), lengths.next()) {
        (None, _) if matches!(head.method.as_str(), "POST" | "PUT") => {
            return refused(411, "there is no content-length");
        }
        (None, _) => return Ok(0),
        (Some(length), None) if length.bytes().all(|byte| byte.is_ascii_digit()) => length,
        _ => return refused(400, "the content-length is not one number"),
    };
    match length.parse() {
        Ok(length) if length <= MAX_BODY => Ok(length),
        _ => refused(413, "the body is too large"),
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Tiki's code, if it says one.
    pub(super) code: Option<u32>,
    pub(super) location: Option<String>,
    pub(super) body: Bytes,
}

impl Answer {
    /// An answer in JSON.
    pub(super) fn json(status: u16, code: Option<u32>, body: &Value) -> Self {
        Self::text(status, code, body.to_string())
    }

    /// An answer that says that it is JSON.
    pub(super) fn text(status: u16, code: Option<u32>, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            code,
            location: None,
            body: body.into(),
        }
    }

    /// A sentence for somebody who did something wrong.
    pub(super) fn sentence(status: u16, sentence: &str) -> Self {
        Self::json(status, None, &serde_json::json!({ "message": sentence }))
    }

    /// The bytes of the head, for a body of this length.
    pub(super) fn head(&self, length: usize, keep_alive: bool) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Other");
        let mut head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n",
            self.status,
        );
        if let Some(location) = &self.location {
            head += &format!("Location: {location}\r\n");
        }
        if !keep_alive {
            head += "Connection: close\r\n";
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// All of its bytes.
    pub(super) fn bytes(&self, keep_alive: bool) -> Vec<u8> {
        let mut bytes = self.head(self.body.len(), keep_alive);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(head: &str) -> Result<usize, u16> {
        let (head, _) = parse_head(head.as_bytes()).unwrap().unwrap();
        body_length(&head).map_err(|error| match error {
            NoRequest::Refused(status, _) => status,
            NoRequest::Ended => 0,
        })
    }

    #[test]
    fn a_body_has_one_plain_length() {
        for (method, fields, wanted) in [
            ("POST", "Content-Length: 3\r\n", Ok(3)),
            ("GET", "", Ok(0)),
            ("POST", "", Err(411)),
            ("POST", "Transfer-Encoding: chunked\r\n", Err(400)),
            (
                "POST",
                "Content-Length: 3\r\ncontent-length: 3\r\n",
                Err(400),
            ),
            ("POST", "Content-Length: +3\r\n", Err(400)),
            ("POST", "Content-Length: 99999999999999999999\r\n", Err(413)),
        ] {
            let head = format!("{method} / HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(length(&head), wanted, "{head}");
        }
    }

    #[test]
    fn a_connection_is_kept_unless_one_side_says_close() {
        for (text, kept) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", false),
        ] {
            assert_eq!(
                parse_head(text.as_bytes()).unwrap().unwrap().0.keep_alive,
                kept
            );
        }
        assert!(parse_head(b"GET / HTTP/1.1\r\nA: ").unwrap().is_none());
        assert!(parse_head(b"\x16\x03\x01").is_err());
    }
}
