//! The URL of a PostgreSQL server: where it is, and whether the way there has to be secured.

use std::net::IpAddr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// Where a ledger's server is.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseUrl {
    /// As the library wants it, with its `ssl_mode` set.
    pub(crate) config: Config,
    /// Over TLS, with the server's certificate and name verified.
    pub(crate) verified: bool,
}

/// Why a URL can't be used. Neither form shows a byte of it beyond the mode's name: the password is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlFault {
    /// It is none, or lacks something.
    #[error("what it names {0}")]
    Malformed(&'static str),
    /// The way there would not be safe from those who can listen or pretend.
    #[error(
        "sslmode={0} does not verify the server, and the URL leads off this host: write \
         sslmode=verify-full, or leave it out for the same"
    )]
    Unverified(&'static str),
}

impl DatabaseUrl {
    /// Reads a URL. Off this host nothing but verified TLS will do; on it, TLS is for whoever asks.
    pub(crate) fn parse(url: &str) -> Result<Self, UrlFault> {
        // The library takes lines of words too, which are harder to tell from a slip.
        let schemes = ["postgres://", "postgresql://"];
        if !schemes.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(UrlFault::Malformed(
                "is no PostgreSQL URL: one starts with postgres://",
            ));
        }
        let (url, mode) = take_sslmode(url)?;
        let mut config: Config = url
            .parse()
            .map_err(|_| UrlFault::Malformed("is no PostgreSQL URL"))?;
        let is_named = |host: &Host| match host {
            Host::Tcp(name) => !name.is_empty(),
            Host::Unix(_) => true,
        };
        let hosts = config.get_hosts();
        let somewhere = !hosts.is_empty() || !config.get_hostaddrs().is_empty();
        if !somewhere || !hosts.iter().all(is_named) {
            return Err(UrlFault::Malformed("is a PostgreSQL URL without a host"));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(UrlFault::Malformed("is a PostgreSQL URL without a user"));
        }
        let verified = match (mode, stays_here(&config)) {
            (Some(Mode::Verifies), _) | (None, false) => true,
            (None | Some(Mode::MayBePlain(_)), true) => false,
            (Some(Mode::MayBePlain(word)), false) => return Err(UrlFault::Unverified(word)),
        };
        config.ssl_mode(if verified {
            SslMode::Require
        } else {
            SslMode::Disable
        });
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
fn take_sslmode(url: &str) -> Result<(String, Option<Mode>), UrlFault> {
    let Some((before, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), None));
    };
    let mut mode = None;
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.strip_prefix("sslmode=") {
            Some(word) => {
                let unknown = UrlFault::Malformed("has an sslmode that is none of PostgreSQL's");
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
        DatabaseUrl::parse(url).unwrap().verified
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
            let read = DatabaseUrl::parse(url).unwrap();
            assert!(read.verified, "{url}");
            assert_eq!(read.config.get_ssl_mode(), SslMode::Require);
        }
    }

    #[test]
    fn on_this_host_plain_will_do() {
        let near = [
            "postgres://u@localhost/ledger",
            "postgres://u@127.0.0.1:5433/ledger?sslmode=disable",
            "postgres://u@[::1]/ledger?sslmode=prefer",
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/ledger",
            "postgres://u@/ledger?host=/var/run/postgresql&sslmode=allow",
            "postgres://u@127.0.0.1,127.0.0.2/ledger",
        ];
        for url in near {
            let read = DatabaseUrl::parse(url).unwrap();
            assert!(!read.verified, "{url}");
            assert_eq!(read.config.get_ssl_mode(), SslMode::Disable);
        }
        assert!(verified(
            "postgres://u@localhost/ledger?sslmode=verify-full"
        ));
    }

    #[test]
    fn a_mode_that_would_not_verify_is_refused_off_this_host() {
        for word in ["disable", "allow", "prefer"] {
            let url = format!("postgres://u:p4ss@db.example/ledger?sslmode={word}");
            let error = DatabaseUrl::parse(&url).unwrap_err().to_string();
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
            "postgres:///ledger",
            "postgres://db.example/ledger",
            "host=db.example user=u password=p4ss",
            "http://u:p4ss@host/db",
            "postgres://u:p4ss@host/db?sslmode=none",
            "postgres://u:p4ss@host/db?colour=red",
            "postgres://u:p4ss@host:port/db",
        ] {
            let error = DatabaseUrl::parse(url).unwrap_err();
            assert!(matches!(error, UrlFault::Malformed(_)), "{error}");
            assert!(!error.to_string().contains("p4ss"), "{error}");
        }
    }
}
