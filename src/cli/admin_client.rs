//! The commands' way to a running gate: one HTTP call to its admin listener.

mod target;

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

use self::target::Target;
use super::terminal;
use crate::config;

/// A whole call, from connecting to the last byte.
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

/// Calls one gate's admin listener. Every call blocks, for ten seconds at most.
#[derive(Debug)]
pub struct AdminClient {
    target: Target,
    authorization: Option<HeaderValue>,
    time_zone: Option<String>,
}

/// An answer of the admin listener.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

/// Why a call came to nothing. `Display` is what the user reads.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL can't be used.
    #[error("`{url}` is not an admin URL: {why}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The token's file can't be used.
    #[error("the admin token in {}: {why}; name its file with --token-file", .path.display())]
    BadTokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What the command line leaves out can't be taken from the configuration.
    #[error(
        "the configuration has problems (tikigate check lists them; --admin URL and --token-file \
         FILE do without it):\n{problem}"
    )]
    BadConfig {
        /// The first of them.
        problem: String,
    },
    /// Nobody listens there.
    #[error(
        "no gate answers at {target}: {why}. Is it running? --admin URL points to another address"
    )]
    NotRunning {
        /// Where it was looked for.
        target: String,
        /// What the system said.
        why: io::Error,
    },
    /// The call took too long.
    #[error("the gate at {target} did not answer within {} s", CALL_WITHIN.as_secs())]
    TimedOut {
        /// Where it was.
        target: String,
    },
    /// The connection broke, or what answered doesn't speak HTTP.
    #[error("the call to {target} broke off: {why}")]
    Broken {
        /// Where it was.
        target: String,
        /// What happened.
        why: String,
    },
    /// The gate refused the call.
    #[error("{}", refusal(.code, .message, .detail))]
    Refused {
        /// Its status.
        status: StatusCode,
        /// The error's stable code.
        code: String,
        /// The error's sentence.
        message: String,
        /// The whole error, with what some codes add.
        detail: Value,
    },
    /// What answered is not a gate's admin listener.
    #[error("what answers at {target} is not a gate's admin listener: {why}")]
    Foreign {
        /// Where it was.
        target: String,
        /// How it showed.
        why: String,
    },
    /// The system refused something that the call needs.
    #[error("the call could not be made: {0}")]
    System(io::Error),
}

fn refusal(code: &str, message: &str, detail: &Value) -> String {
    let message = terminal::escape(message);
    match (code, detail["until"].as_str()) {
        ("unauthorized", _) => {
            "the gate does not know this token; --token-file names another".to_owned()
        }
        ("may_still_run", Some(until)) => {
            let until = terminal::escape(until);
            format!(
                "{message} until {until}: wait, or say --force if you are certain that it is not"
            )
        }
        _ => format!("{message} ({})", terminal::escape(code)),
    }
}

impl AdminClient {
    /// A client with a token, for the API.
    ///
    /// # Errors
    /// [`ClientError::BadUrl`], [`ClientError::BadTokenFile`], [`ClientError::BadConfig`].
    pub fn with_token(options: &AdminOptions) -> Result<Self, ClientError> {
        let defaults = match (&options.gate.admin, &options.token_file) {
            (Some(_), Some(_)) => Defaults::plain(None),
            _ => defaults(options.gate.config.as_deref())?,
        };
        let token_file = options.token_file.as_ref().unwrap_or(&defaults.token_file);
        let authorization = read_token(token_file).map_err(|why| ClientError::BadTokenFile {
            path: token_file.clone(),
            why,
        })?;
        let url = options.gate.admin.as_deref().unwrap_or(&defaults.url);
        Ok(Self {
            target: Target::parse(url)?,
            authorization: Some(authorization),
            time_zone: defaults.time_zone,
        })
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
        Ok(Self {
            target: Target::parse(url)?,
            authorization: None,
            time_zone: defaults.time_zone,
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
        self.call(Method::GET, path, None)
    }

    /// Gets the `data` of an API answer.
    ///
    /// # Errors
    /// Every [`ClientError`].
    pub fn get(&self, path_and_query: &str) -> Result<Value, ClientError> {
        self.data(self.call(Method::GET, path_and_query, None)?)
    }

    /// Sends JSON and returns the `data` of the API's answer.
    ///
    /// # Errors
    /// Every [`ClientError`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.data(self.call(Method::POST, path, Some(body.to_string()))?)
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

    fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, ClientError> {
        let request = self.request(method, path, body)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::System)?;
        let answer = runtime
            .block_on(async { tokio::time::timeout(CALL_WITHIN, self.exchange(request)).await });
        // A name that is still being resolved must not hold the command back.
        runtime.shutdown_background();
        answer.unwrap_or_else(|_| {
            Err(ClientError::TimedOut {
                target: self.target.to_string(),
            })
        })
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

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
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
                self.speak(stream, request).await
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(not_running)?;
                self.speak(stream, request).await
            }
        }
    }

    async fn speak<S>(
        &self,
        stream: S,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let connection = tokio::spawn(connection);
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        connection.abort();
        let body = body.map_err(|error| self.broken(&*error))?.to_bytes();
        Ok(Answer {
            status: head.status,
            body,
        })
    }

    fn broken(&self, why: &dyn std::error::Error) -> ClientError {
        ClientError::Broken {
            target: self.target.to_string(),
            why: why.to_string(),
        }
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
