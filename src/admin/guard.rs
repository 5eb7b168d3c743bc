//! Who may use the API: names in `Host`, web pages, tokens, content types.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hmac::digest::CtOutput;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, HeaderName, Uri};
use sha2::{Digest, Sha256};

use super::answer::Fault;
use crate::config::AdminToken;

/// Who may use the API as of now. Clones share it.
#[derive(Clone, Debug)]
pub struct Access(Arc<ArcSwap<Admitted>>);

#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) tokens: Tokens,
    /// Names that are accepted in `Host` besides the listen address and loopback.
    pub(super) hosts: Vec<String>,
}

impl Access {
    /// Whoever shows one of these tokens ([`super::token::ensure_token`] makes one where none is
    /// configured; empty: nobody), at the listen address, loopback or one of `hosts`: with a port only
    /// on that port, without one on any.
    pub fn new(tokens: &[AdminToken], hosts: Vec<String>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Admitted {
            tokens: Tokens::new(tokens),
            hosts,
        })))
    }

    /// Whoever shows one of these from now on.
    pub fn renew(&self, tokens: &[AdminToken], hosts: Vec<String>) {
        self.0.store(Arc::new(Admitted {
            tokens: Tokens::new(tokens),
            hosts,
        }));
    }

    pub(super) fn get(&self) -> Arc<Admitted> {
        self.0.load_full()
    }
}

/// The tokens, as hashes that are compared in constant time.
pub(super) struct Tokens(Vec<(String, CtOutput<Sha256>)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

impl Tokens {
    pub(super) fn new(tokens: &[AdminToken]) -> Self {
        let hashed = tokens
            .iter()
            .map(|token| (token.name.clone(), hash(token.token.expose())));
        Self(hashed.collect())
    }

    /// The name of the holder of the request's bearer token.
    ///
    /// Every token is compared, so that the time says neither which one matched nor how far.
    pub(super) fn holder(&self, headers: &HeaderMap) -> Result<&str, Fault> {
        let presented = bearer(headers).ok_or(Fault::Unauthorized)?;
        let presented = hash(presented);
        let mut holder = None;
        for (name, token) in &self.0 {
            if *token == presented {
                holder = Some(name.as_str());
            }
        }
        holder.ok_or(Fault::Unauthorized)
    }
}

fn hash(token: &[u8]) -> CtOutput<Sha256> {
    CtOutput::new(Sha256::digest(token))
}

/// RFC 6750: one `Authorization: Bearer TOKEN`; the scheme's case doesn't matter.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = only(headers, AUTHORIZATION)?;
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// Refuses a request that reached this listener by a name that is not its own: a web page can make
/// its own name resolve to any address (DNS rebinding), and then reads the answers.
///
/// `local` is this end of the connection; `None` on a unix socket, which no name leads to.
pub(super) fn require_known_host(
    target: &Uri,
    headers: &HeaderMap,
    local: Option<SocketAddr>,
    hosts: &[String],
) -> Result<(), Fault> {
    // A target in absolute form (RFC 9112, 3.2.2) would name a second host.
    let known = target.authority().is_none()
        && only(headers, HOST)
            .and_then(|host| std::str::from_utf8(host).ok())
            .is_some_and(|host| is_known(host, local, hosts));
    if known {
        Ok(())
    } else {
        Err(Fault::ForbiddenHost)
    }
}

fn is_known(host: &str, local: Option<SocketAddr>, hosts: &[String]) -> bool {
    let Some((name, port)) = split_port(host) else {
        return false;
    };
    let listed = hosts
        .iter()
        .any(|known| known.eq_ignore_ascii_case(host) || known.eq_ignore_ascii_case(name));
    if listed {
        return true;
    }
    let Some(local) = local else {
        return name.eq_ignore_ascii_case("localhost");
    };
    if port.unwrap_or(80) != local.port() {
        return false;
    }
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    // An address can't be rebound. The one that was connected to is the listen address, or one of
    // this machine's where the listener is on all of them.
    address(name)
        .is_some_and(|ip| ip.is_loopback() || ip.to_canonical() == local.ip().to_canonical())
}

/// `name[:port]`, where the name may be `[…]`. `None` where the port is no number.
fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let after_name = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(after_name);
    match rest.strip_prefix(':') {
        Some(port) => Some((name, Some(port.parse().ok()?))),
        None => rest.is_empty().then_some((name, None)),
    }
}

fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => name.parse().ok().map(IpAddr::V4),
    }
}

/// Refuses what a browser sends on behalf of a page.
pub(super) fn require_no_origin(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(ORIGIN) {
        return Err(Fault::ForbiddenOrigin);
    }
    Ok(())
}

/// Refuses what an HTML form could send.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), Fault> {
    let is_json = only(headers, CONTENT_TYPE).is_some_and(|value| {
        let essence = value.split(|byte| *byte == b';').next().unwrap_or(value);
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/json")
    });
    if is_json {
        Ok(())
    } else {
        Err(Fault::UnsupportedMediaType)
    }
}

/// The value of a header that must be there exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use http::HeaderValue;

    fn local() -> Option<SocketAddr> {
        Some("10.1.2.3:9901".parse().unwrap())
    }

    #[test]
    fn a_host_is_known_by_address_loopback_or_list() {
        let hosts = ["gate.internal".to_owned(), "other:8443".to_owned()];
        let known = |host: &str| is_known(host, local(), &hosts);
        for host in [
            "10.1.2.3:9901",
            "127.0.0.1:9901",
            "[::1]:9901",
            "LocalHost:9901",
            "gate.internal",
            "gate.internal:1234",
            "OTHER:8443",
        ] {
            assert!(known(host), "{host}");
        }
        for host in [
            "10.1.2.3",
            "10.1.2.3:9902",
            "10.1.2.4:9901",
            "127.0.0.1",
            "localhost:80",
            "other",
            "other:9901",
            "evil.example:9901",
            "localhost.evil.example:9901",
            "127.0.0.1.evil.example:9901",
            "gate.internal:x",
            "gate.internal@evil",
            "[::1]x:9901",
            "::1:9901",
            "",
        ] {
            assert!(!known(host), "{host}");
        }
    }

    #[test]
    fn a_unix_socket_is_localhost() {
        assert!(is_known("localhost", None, &[]));
        assert!(!is_known("evil.example", None, &[]));
    }

    #[test]
    fn the_default_port_may_be_left_out() {
        let local = Some("127.0.0.1:80".parse().unwrap());
        assert!(is_known("localhost", local, &[]));
        assert!(is_known("127.0.0.1:80", local, &[]));
    }

    fn authorization(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_token_names_its_holder() {
        let token = |name: &str, token: &str| AdminToken {
            name: name.to_owned(),
            token: Secret::new(token.as_bytes().to_vec()),
        };
        let tokens = Tokens::new(&[token("ops", "one"), token("ci", "two")]);
        let holder = |values: &[&str]| {
            tokens
                .holder(&authorization(values))
                .ok()
                .map(str::to_owned)
        };
        assert_eq!(holder(&["Bearer one"]).as_deref(), Some("ops"));
        assert_eq!(holder(&["bearer  two"]).as_deref(), Some("ci"));
        for refused in [
            &[][..],
            &["Bearer"],
            &["Bearer "],
            &["Bearer on"],
            &["Bearer onee"],
            &["Basic one"],
            &["one"],
            &["Bearer one", "Bearer one"],
        ] {
            assert_eq!(holder(refused), None, "{refused:?}");
        }
        let none = Tokens::new(&[]);
        assert!(none.holder(&authorization(&["Bearer one"])).is_err());
    }

    #[test]
    fn only_json_changes_things() {
        let content_type = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(value).unwrap());
            require_json(&headers).is_ok()
        };
        assert!(content_type("application/json"));
        assert!(content_type("Application/JSON; charset=utf-8"));
        assert!(!content_type("text/plain"));
        assert!(!content_type("application/jsonp"));
        assert!(require_json(&HeaderMap::new()).is_err());
    }
}
