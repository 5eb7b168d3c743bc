//! Where the server is, and whether the way there has to be secured.

use std::net::IpAddr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::fault::OpenError;
use super::session::APPLICATION;

/// One attempt to connect, to each of the URL's hosts.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// A silent connection is asked for life after this, and given up some three times later.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long what was written may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Where and how to connect.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) config: Config,
    /// Over TLS, with the server's certificate and name verified.
    pub(super) verified: bool,
}

impl Address {
    /// Reads a URL. Off this host nothing but verified TLS will do; on it, TLS is for whoever asks.
    pub(super) fn parse(url: &str) -> Result<Self, OpenError> {
        let (url, mode) = take_sslmode(url)?;
        let mut config: Config = url
            .parse()
            .map_err(|_| OpenError::Url("is no URL of a PostgreSQL server"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(OpenError::Url("names no host"));
        }
        let verified = match (mode, stays_here(&config)) {
            (Some(Mode::Verifies), _) | (None, false) => true,
            (None | Some(Mode::MayBePlain(_)), true) => false,
            (Some(Mode::MayBePlain(word)), false) => {
                return Err(OpenError::Unverified(format!(
                    "sslmode={word} does not verify the server, and the URL leads off this host: \
                     write sslmode=verify-full, or leave it out for the same"
                )));
            }
        };
        config
            .ssl_mode(if verified {
                SslMode::Require
            } else {
                SslMode::Disable
            })
            .connect_timeout(CONNECT_WITHIN)
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE / 2)
            .keepalives_retries(3)
            .tcp_user_timeout(UNACKNOWLEDGED);
        if config.get_hosts().len().max(config.get_hostaddrs().len()) > 1 {
            // Of several servers, the one that is the primary now.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION);
        }
        Ok(Self { config, verified })
    }
}

/// What `sslmode` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// TLS. Whatever of it is to be verified: here all of it is.
    Verifies,
    MayBePlain(&'static str),
}

impl Mode {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "require" | "verify-ca" | "verify-full" => Self::Verifies,
            "disable" => Self::MayBePlain("disable"),
            "allow" => Self::MayBePlain("allow"),
            "prefer" => Self::MayBePlain("prefer"),
            _ => return None,
        })
    }
}

/// Takes `sslmode` out of the URL: its values mean something else here than to the library.
fn take_sslmode(url: &str) -> Result<(String, Option<Mode>), OpenError> {
    let Some((before, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), None));
    };
    let mut mode = None;
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.strip_prefix("sslmode=") {
            Some(word) => {
                let unknown = OpenError::Url("has an sslmode that is none of PostgreSQL's");
                mode = Some(Mode::parse(word).ok_or(unknown)?);
            }
            None => kept.push(pair),
        }
    }
    let separator = if kept.is_empty() { "" } else { "?" };
    Ok((format!("{before}{separator}{}", kept.join("&")), mode))
}

/// Whether every place that the configuration may lead to is this host.
fn stays_here(config: &Config) -> bool {
    let addresses = config.get_hostaddrs();
    if !addresses.is_empty() {
        return addresses.iter().all(IpAddr::is_loopback);
    }
    config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(url: &str) -> bool {
        Address::parse(url).unwrap().verified
    }

    #[test]
    fn off_this_host_the_server_is_verified() {
        let far = [
            "postgres://u:p@db.example/ledger",
            "postgres://u:p@10.0.0.7:5433/ledger?sslmode=require",
            "postgres://u:p@db.example/ledger?sslmode=verify-ca",
            "postgresql://u:p@db.example/ledger?sslmode=verify-full&application_name=x",
            "postgres://u:p@localhost,db.example/ledger",
            "postgres://u:p@/ledger?host=localhost&hostaddr=10.0.0.7",
        ];
        for url in far {
            let address = Address::parse(url).unwrap();
            assert!(address.verified, "{url}");
            assert_eq!(address.config.get_ssl_mode(), SslMode::Require);
        }
    }

    #[test]
    fn on_this_host_plain_will_do() {
        let near = [
            "postgres://u@localhost/ledger",
            "postgres://u@127.0.0.1:5433/ledger?sslmode=disable",
            "postgres://u@[::1]/ledger?sslmode=prefer",
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/ledger",
            "postgres:///ledger?host=/var/run/postgresql&sslmode=allow",
            "postgres://u@127.0.0.1,127.0.0.2/ledger",
        ];
        for url in near {
            let address = Address::parse(url).unwrap();
            assert!(!address.verified, "{url}");
            assert_eq!(address.config.get_ssl_mode(), SslMode::Disable);
        }
        assert!(verified(
            "postgres://u@localhost/ledger?sslmode=verify-full"
        ));
    }

    #[test]
    fn a_mode_that_would_not_verify_is_refused_off_this_host() {
        for word in ["disable", "allow", "prefer"] {
            let url = format!("postgres://u:p4ss@db.example/ledger?sslmode={word}");
            let error = Address::parse(&url).unwrap_err().to_string();
            assert!(error.contains(&format!("sslmode={word}")), "{error}");
            assert!(error.contains("sslmode=verify-full"), "{error}");
            assert!(!error.contains("p4ss"), "{error}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_without_being_quoted() {
        for url in [
            "",
            "postgres://",
            "http://u:p4ss@host/db",
            "postgres://u:p4ss@host/db?sslmode=none",
            "postgres://u:p4ss@host/db?colour=red",
            "postgres://u:p4ss@host:port/db",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(error.is_lasting());
            assert!(!error.to_string().contains("p4ss"), "{error}");
        }
    }
}
