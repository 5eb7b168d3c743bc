//! The commands' way to a running gate: HTTP calls to its admin listener.

mod error;
mod target;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;

pub use self::error::ClientError;
use self::target::Target;
use crate::config;

/// A whole call, from connecting to the last byte, unless it says otherwise.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of an answer at most.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Bytes of a token's file at most.
const MAX_TOKEN_FILE: u64 = 4096;

/// The file that a gate without configured tokens makes beside its ledger.
pub const MADE_TOKEN_FILE: &str = "admin.token";

/// Where the gate is.
#[derive(Clone, Debug, clap::Args)]
pub struct GateOptions {
    /// Its admin listener: http://HOST:PORT or unix:/PATH. Left out: the configuration's, else
    /// http://127.0.0.1:9901
    #[arg(long, value_name = "URL", global = true, help_heading = "The gate")]
    pub admin: Option<String>,
    /// Its configuration, for what is not named here
    #[arg(long, value_name = "FILE", global = true, help_heading = "The gate")]
    pub config: Option<PathBuf>,
}

/// Where the gate is and how to be let in.
#[derive(Clone, Debug, clap::Args)]
pub struct AdminOptions {
    /// Where the gate is.
    #[command(flatten)]
    pub gate: GateOptions,
    /// A file with an admin token. Left out: the one that the gate made beside its ledger
    #[arg(long, value_name = "FILE", global = true, help_heading = "The gate")]
    pub token_file: Option<PathBuf>,
}

/// What the configuration says where the command line says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Where the admin API answers.
    pub url: String,
    /// Where the token is.
    pub token_file: PathBuf,
    /// The time zone that dates are shown in.
    pub time_zone: Option<String>,
}

impl Defaults {
    /// Of a gate that says nothing of its own, beside whose configuration a token may have been made.
    fn plain(config: Option<&Path>) -> Self {
        let directory = config.and_then(Path::parent).unwrap_or(Path::new(""));
        Self {
            url: "http://127.0.0.1:9901".to_owned(),
            token_file: directory.join(MADE_TOKEN_FILE),
            time_zone: None,
        }
    }
}

/// The defaults for commands that talk to a running gate: what its configuration says. Without
/// `--config`, the usual file is read where there is one.
///
/// # Errors
/// [`ClientError::BadConfig`] with the configuration's first problem.
pub fn defaults(config: Option<&Path>) -> Result<Defaults, ClientError> {
    let path = config::default_path(config.map(Path::to_owned));
    if config.is_none() && !path.exists() {
        return Ok(Defaults::plain(None));
    }
    let environment: Vec<_> = std::env::vars_os().collect();
    let settings = match config::load(&path, &environment) {
        Ok(loaded) => loaded.settings,
        Err(problems) => {
            let problem = problems
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            return Err(ClientError::BadConfig { problem });
        }
    };
    Ok(Defaults {
        url: settings.admin.listen.local_url(),
        token_file: settings.ledger.directory.join(MADE_TOKEN_FILE),
        time_zone: Some(settings.ledger.time_zone),
    })
}

/// Calls one gate's admin listener. Every call blocks, for ten seconds at most unless it says otherwise.
#[derive(Debug)]
pub struct AdminClient {
    target: Target,
    authorization: Option<HeaderValue>,
    time_zone: Option<String>,
    /// There until the client is dropped.
    runtime: Option<Runtime>,
    /// The connection of the last read, for the next one: an export reads thousands of pages.
    kept: RefCell<Option<Sender>>,
}

type Sender = http1::SendRequest<Full<Bytes>>;

/// An answer of the admin listener.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

impl AdminClient {
    /// A client with a token, for the API.
    ///
    /// # Errors
    /// [`ClientError::BadUrl`], [`ClientError::BadTokenFile`], [`ClientError::BadConfig`].
    pub fn with_token(options: &AdminOptions) -> Result<Self, ClientError> {
        let config = options.gate.config.as_deref();
        let defaults = match (&options.gate.admin, &options.token_file, config) {
            (Some(_), Some(_), None) => Defaults::plain(None),
            _ => defaults(config)?,
        };
        let token_file = options.token_file.as_ref().unwrap_or(&defaults.token_file);
        let authorization = read_token(token_file).map_err(|why| ClientError::BadTokenFile {
            path: token_file.clone(),
            why,
        })?;
        let url = options.gate.admin.as_deref().unwrap_or(&defaults.url);
        Self::new(Target::parse(url)?, Some(authorization), defaults.time_zone)
    }

    /// A client without a token, for the probes.
    ///
    /// # Errors
    /// [`ClientError::BadUrl`], [`ClientError::BadConfig`].
    pub fn without_token(options: &GateOptions) -> Result<Self, ClientError> {
        let defaults = match options.admin {
            Some(_) => Defaults::plain(None),
            None => defaults(options.config.as_deref())?,
        };
        let url = options.admin.as_deref().unwrap_or(&defaults.url);
        Self::new(Target::parse(url)?, None, defaults.time_zone)
    }

    /// A client of an admin listener of this process's own, on a unix socket.
    ///
    /// # Errors
    /// [`ClientError::System`].
    pub fn of_socket(
        socket: &Path,
        token: &str,
        time_zone: Option<String>,
    ) -> Result<Self, ClientError> {
        let authorization =
            bearer(token.as_bytes()).map_err(|why| ClientError::System(io::Error::other(why)))?;
        let target = Target::Unix(socket.to_owned());
        Self::new(target, Some(authorization), time_zone)
    }

    fn new(
        target: Target,
        authorization: Option<HeaderValue>,
        time_zone: Option<String>,
    ) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::System)?;
        Ok(Self {
            target,
            authorization,
            time_zone,
            runtime: Some(runtime),
            kept: RefCell::default(),
        })
    }

    /// The time zone that the configuration wants dates in.
    pub fn time_zone(&self) -> Option<&str> {
        self.time_zone.as_deref()
    }

    /// Gets a path, whatever the status of the answer.
    ///
    /// # Errors
    /// Every [`ClientError`] but [`ClientError::Refused`].
    pub fn probe(&self, path: &str) -> Result<Answer, ClientError> {
        self.block_on(CALL_WITHIN, async {
            let request = self.request(Method::GET, path, None)?;
            Ok(self.connect().await?.exchange(self, request).await?.0)
        })
    }

    /// Gets the `data` of an API answer.
    ///
    /// # Errors
    /// Every [`ClientError`].
    pub fn get(&self, path_and_query: &str) -> Result<Value, ClientError> {
        let answer = self.block_on(CALL_WITHIN, self.read(path_and_query))?;
        self.data(answer)
    }

    /// Sends JSON and returns the `data` of the API's answer.
    ///
    /// # Errors
    /// Every [`ClientError`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.post_within(CALL_WITHIN, path, body)
    }

    /// The same with another bound on the whole call.
    ///
    /// # Errors
    /// Every [`ClientError`].
    pub fn post_within(
        &self,
        within: Duration,
        path: &str,
        body: &Value,
    ) -> Result<Value, ClientError> {
        // On a connection of its own: a change that may have arrived is never sent twice.
        let answer = self.block_on(within, async {
            let request = self.request(Method::POST, path, Some(body.to_string()))?;
            Ok(self.connect().await?.exchange(self, request).await?.0)
        })?;
        self.data(answer)
    }

    fn data(&self, answer: Answer) -> Result<Value, ClientError> {
        let foreign = |why: String| ClientError::Foreign {
            target: self.target.to_string(),
            why,
        };
        let mut body: Value = serde_json::from_slice(&answer.body).map_err(|_| {
            foreign(format!(
                "it answered {} with something else than JSON",
                answer.status
            ))
        })?;
        if answer.status.is_success() {
            return match body.get_mut("data") {
                Some(data) if !data.is_null() => Ok(data.take()),
                _ => Err(foreign("its answer holds no data".to_owned())),
            };
        }
        let error = body["error"].take();
        let word = |name: &str| error[name].as_str().map(str::to_owned);
        match (word("code"), word("message")) {
            (Some(code), Some(message)) => Err(ClientError::Refused {
                status: answer.status,
                code,
                message,
                detail: error,
            }),
            _ => Err(foreign(format!("it answered {}", answer.status))),
        }
    }

    /// Reads on the connection of the last read, or, where there is none or the gate has closed it
    /// meanwhile, on a new one. Reading twice changes nothing.
    async fn read(&self, path: &str) -> Result<Answer, ClientError> {
        let kept = self.kept.borrow_mut().take();
        if let Some(sender) = kept {
            let request = self.request(Method::GET, path, None)?;
            if let Ok((answer, sender)) = Connected(sender).exchange(self, request).await {
                *self.kept.borrow_mut() = Some(sender);
                return Ok(answer);
            }
        }
        let request = self.request(Method::GET, path, None)?;
        let (answer, sender) = self.connect().await?.exchange(self, request).await?;
        *self.kept.borrow_mut() = Some(sender);
        Ok(answer)
    }

    fn block_on<T>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let timed_out = || ClientError::TimedOut {
            target: self.target.to_string(),
            within,
        };
        let Some(runtime) = &self.runtime else {
            return Err(timed_out()); // only a dropped client has none
        };
        let answer = runtime.block_on(async { tokio::time::timeout(within, call).await });
        answer.unwrap_or_else(|_| Err(timed_out()))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.target.host())
            .header(ACCEPT, "application/json, text/plain");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        request.body(body).map_err(|error| self.broken(&error))
    }

    async fn connect(&self) -> Result<Connected, ClientError> {
        let not_running = |why| ClientError::NotRunning {
            target: self.target.to_string(),
            why,
        };
        match &self.target {
            Target::Tcp { host, port } => {
                let name = host.trim_start_matches('[').trim_end_matches(']');
                let stream = TcpStream::connect((name, *port))
                    .await
                    .map_err(not_running)?;
                self.shake_hands(stream).await
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(not_running)?;
                self.shake_hands(stream).await
            }
        }
    }

    async fn shake_hands<S>(&self, stream: S) -> Result<Connected, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // It ends when its sender is dropped.
        tokio::spawn(connection);
        Ok(Connected(sender))
    }

    fn broken(&self, why: &dyn std::error::Error) -> ClientError {
        ClientError::Broken {
            target: self.target.to_string(),
            why: why.to_string(),
        }
    }
}

impl Drop for AdminClient {
    fn drop(&mut self) {
        // A name that is still being resolved must not hold the command back.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An open connection.
struct Connected(Sender);

impl Connected {
    /// One request and its whole answer; the connection is there for another one afterwards.
    async fn exchange(
        mut self,
        client: &AdminClient,
        request: Request<Full<Bytes>>,
    ) -> Result<(Answer, Sender), ClientError> {
        let ready = self.0.ready().await;
        ready.map_err(|error| client.broken(&error))?;
        let answer = self.0.send_request(request).await;
        let (head, body) = answer.map_err(|error| client.broken(&error))?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| client.broken(&*error))?.to_bytes();
        let answer = Answer {
            status: head.status,
            body,
        };
        Ok((answer, self.0))
    }
}

/// The token as the header that carries it; on failure, a few words that don't contain it.
fn read_token(path: &Path) -> Result<HeaderValue, String> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })?;
    let mut text = Vec::new();
    file.take(MAX_TOKEN_FILE)
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())?;
    let token = text.strip_suffix(b"\n").unwrap_or(&text);
    let token = token.strip_suffix(b"\r").unwrap_or(token);
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err("the file holds no token".to_owned());
    }
    bearer(token)
}

fn bearer(token: &[u8]) -> Result<HeaderValue, String> {
    let header = [b"Bearer ".as_slice(), token].concat();
    let mut header = HeaderValue::from_bytes(&header).map_err(|error| error.to_string())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_holds_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_token(&path).map(|header| header.to_str().unwrap().to_owned())
        };
        assert_eq!(read("abc\n").as_deref(), Ok("Bearer abc"));
        assert_eq!(read("abc\r\n").as_deref(), Ok("Bearer abc"));
        for text in ["", "\n", "a b", "a\nb\n", "é"] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(read_token(&directory.path().join("none")).is_err());
    }

    /// Answers each connection so many requests, then closes it, and tells how many came in all.
    fn server(each: usize, connections: usize) -> (String, std::thread::JoinHandle<usize>) {
        use std::io::Write;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let mut answered = 0;
            for stream in listener.incoming().take(connections) {
                let mut stream = stream.unwrap();
                for _ in 0..each {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).unwrap() == 0 {
                            return answered;
                        }
                        head.push(byte[0]);
                    }
                    answered += 1;
                    let body = format!("{{\"data\":{answered}}}");
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
            answered
        });
        (url, serving)
    }

    fn client_of(url: &str) -> AdminClient {
        AdminClient::new(Target::parse(url).unwrap(), None, None).unwrap()
    }

    #[test]
    fn reads_share_a_connection_and_get_over_its_end() {
        let (url, serving) = server(2, 3);
        let client = client_of(&url);
        for expected in 1..=5 {
            assert_eq!(client.get("/").unwrap(), expected);
        }
        drop(client);
        assert_eq!(serving.join().unwrap(), 5);
    }

    #[test]
    fn a_change_goes_out_once_on_a_connection_of_its_own() {
        let (url, serving) = server(1, 2);
        let client = client_of(&url);
        assert_eq!(client.get("/").unwrap(), 1);
        assert_eq!(client.post("/", &Value::Null).unwrap(), 2);
        assert_eq!(serving.join().unwrap(), 2);
    }

    #[test]
    fn a_debugged_client_does_not_show_its_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "very-secret").unwrap();
        let options = AdminOptions {
            gate: GateOptions {
                admin: None,
                config: None,
            },
            token_file: Some(path),
        };
        let client = AdminClient::with_token(&options).unwrap();
        assert!(!format!("{client:?}").contains("very-secret"));
    }
}
