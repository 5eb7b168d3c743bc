//! Tiki's own calls to a gate, and its patience: when it sends again, and when it doesn't.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::signature::{Family, Keys};

/// When Tiki sends an IPN again, in seconds after the try before.
const WAITS: [u64; 7] = [60, 300, 1800, 3600, 21_600, 43_200, 86_400];
/// How long Tiki waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a single call waits.
const CALL_PATIENCE: Duration = Duration::from_secs(60);
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// A call to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to, `http://` only.
    pub url: String,
    /// Posted as it is; without one it is a GET, whose path and query are signed.
    pub body: Option<String>,
    /// The client to sign as.
    pub client: String,
    /// The names of its headers; left out, those of our own API.
    pub family: Option<Family>,
}

impl Outgoing {
    /// A POST of this body.
    pub fn post(
        url: impl Into<String>,
        body: impl Into<String>,
        client: impl Into<String>,
    ) -> Self {
        Self {
            url: url.into(),
            body: Some(body.into()),
            client: client.into(),
            family: None,
        }
    }
}

/// How a call is sent again.
#[derive(Clone, Debug, PartialEq)]
pub struct Resending {
    /// All waits are divided by this.
    pub speed: f64,
    /// Each try has the first one's timestamp and signature.
    pub unchanged: bool,
    /// How long each try waits; left out, 15 s divided by `speed`.
    pub patience: Option<Duration>,
}

impl Resending {
    /// Signed anew each time.
    pub fn at_speed(speed: f64) -> Self {
        Self {
            speed,
            unchanged: false,
            patience: None,
        }
    }
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The header fields.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Try {
    /// When it began, in milliseconds after the first.
    pub after_ms: u64,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// The answer.
    pub reply: Option<Reply>,
    /// Why there is none.
    pub error: Option<String>,
}

impl Try {
    /// Whether Tiki sends again: after 5xx, no answer in time, or a broken connection.
    fn is_to_repeat(&self) -> bool {
        self.reply
            .as_ref()
            .is_none_or(|reply| (500..600).contains(&reply.status))
    }
}

fn invalid(sentence: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, sentence)
}

/// A signed call, ready to be sent as often as wanted.
pub(super) struct Signed {
    host: String,
    port: u16,
    request: http::Request<Bytes>,
}

impl Signed {
    /// Signs a call.
    ///
    /// # Errors
    /// `InvalidInput` and a sentence: the URL can't be used or the client is unknown.
    pub(super) fn new(keys: &Keys, outgoing: &Outgoing, now: u64) -> io::Result<Self> {
        let url: http::Uri = outgoing
            .url
            .parse()
            .map_err(|error| invalid(format!("{:?} is no URL: {error}", outgoing.url)))?;
        let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(invalid(format!("{:?} is no http:// URL", outgoing.url)));
        };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let signed = outgoing.body.as_deref().unwrap_or(path);
        let family = outgoing.family.unwrap_or(keys.family());
        let headers = keys
            .sign(family, &outgoing.client, signed.as_bytes(), now)
            .ok_or_else(|| invalid(format!("the client {:?} is unknown", outgoing.client)))?;
        let method = match &outgoing.body {
            Some(_) => http::Method::POST,
            None => http::Method::GET,
        };
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("Host", authority.as_str())
            .header("Connection", "close");
        if outgoing.body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = Bytes::from(outgoing.body.clone().unwrap_or_default());
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            request: request
                .body(body)
                .map_err(|error| invalid(error.to_string()))?,
        })
    }

    /// Sends it over a connection of its own.
    pub(super) async fn send(&self) -> io::Result<Reply> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = self.request.clone().map(Full::new);
        let exchange = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(Reply {
                status: head.status.as_u16(),
                headers: head
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                    .collect(),
                body: text(&body),
            })
        };
        // The connection may end before the answer it brought is read.
        let driven = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            reply = exchange => reply,
            never = driven => never,
        }
    }

    async fn send_within(&self, patience: Duration) -> io::Result<Reply> {
        timeout(patience, self.send())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Makes one call.
pub(super) async fn call(keys: &Keys, outgoing: &Outgoing, now: u64) -> io::Result<Reply> {
    Signed::new(keys, outgoing, now)?
        .send_within(CALL_PATIENCE)
        .await
}

/// Makes a call and repeats it as Tiki does.
///
/// # Errors
/// As [`Signed::new`]; what goes wrong on the way is part of the tries.
pub(super) async fn resend(
    keys: &Keys,
    outgoing: &Outgoing,
    how: &Resending,
    now: impl Fn() -> u64,
) -> io::Result<Vec<Try>> {
    let faster = |wait: Duration| Duration::try_from_secs_f64(wait.as_secs_f64() / how.speed);
    let patience = match how.patience {
        Some(patience) => patience,
        None => faster(PATIENCE).map_err(|error| invalid(format!("the speed: {error}")))?,
    };
    let mut signed_at = now();
    let mut signed = Signed::new(keys, outgoing, signed_at)?;
    let began = Instant::now();
    let mut tries = Vec::new();
    let waits = WAITS.into_iter().map(Some).chain([None]);
    for (number, wait) in waits.enumerate() {
        if number > 0 && !how.unchanged {
            // A hurried clock may still stand where it stood, and the signature would be the same.
            signed_at = now().max(signed_at + 1);
            signed = Signed::new(keys, outgoing, signed_at)?;
        }
        let at = Instant::now();
        let result = signed.send_within(patience).await;
        let error = result.as_ref().err().map(ToString::to_string);
        let this = Try {
            after_ms: milliseconds(at - began),
            ms: milliseconds(at.elapsed()),
            reply: result.ok(),
            error,
        };
        let again = this.is_to_repeat();
        tries.push(this);
        let Some(wait) = wait.filter(|_| again) else {
            break;
        };
        let wait = faster(Duration::from_secs(wait));
        sleep(wait.map_err(|error| invalid(format!("the speed: {error}")))?).await;
    }
    Ok(tries)
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What `POST /_control/send` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Send {
    url: String,
    #[serde(default)]
    body: Option<String>,
    client: String,
    #[serde(default)]
    family: Option<Family>,
    #[serde(default)]
    pub(super) resend: bool,
    #[serde(default = "one")]
    speed: f64,
    #[serde(default)]
    unchanged: bool,
    #[serde(default)]
    patience_ms: Option<u64>,
}

fn one() -> f64 {
    1.0
}

impl Send {
    pub(super) fn parts(self) -> (Outgoing, Resending) {
        let outgoing = Outgoing {
            url: self.url,
            body: self.body,
            client: self.client,
            family: self.family,
        };
        let how = Resending {
            speed: self.speed,
            unchanged: self.unchanged,
            patience: self.patience_ms.map(Duration::from_millis),
        };
        (outgoing, how)
    }
}
