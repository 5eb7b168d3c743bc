//! Where an admin listener is.

use std::fmt;
use std::path::PathBuf;

use http::Uri;

use super::ClientError;
use crate::cli::terminal;

/// Where an admin listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The host as the URL writes it, with brackets around IPv6.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, ClientError> {
        let bad = |why| ClientError::BadUrl {
            url: terminal::escape(url),
            why,
        };
        if let Some(path) = url.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(bad("a path must follow `unix:`"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let shape = "it looks like http://127.0.0.1:9901 or unix:/run/tikigate/admin.sock";
        let uri: Uri = url.parse().map_err(|_| bad(shape))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad(shape));
        }
        let authority = uri.authority().ok_or_else(|| bad(shape))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad(shape));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("it must end after the port"));
        }
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => 80,
            None => return Err(bad("its port is no number up to 65535")),
        };
        Ok(Self::Tcp {
            host: authority.host().to_owned(),
            port,
        })
    }

    /// The `Host` header.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_strictly() {
        let host = |url: &str| Target::parse(url).map(|target| target.host()).ok();
        assert_eq!(
            host("http://127.0.0.1:9901").as_deref(),
            Some("127.0.0.1:9901")
        );
        assert_eq!(
            host("http://gate.internal/").as_deref(),
            Some("gate.internal:80")
        );
        assert_eq!(host("http://[::1]:9901").as_deref(), Some("[::1]:9901"));
        assert_eq!(host("unix:/run/a.sock").as_deref(), Some("localhost"));
        for url in [
            "",
            "127.0.0.1:9901",
            "https://127.0.0.1:9901",
            "http://",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:",
            "http://u:p@127.0.0.1:9901",
            "http://127.0.0.1:9901/api",
            "http://127.0.0.1:9901/?x",
            "unix:",
        ] {
            assert_eq!(host(url), None, "{url}");
        }
    }
}
