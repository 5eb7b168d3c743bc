//! Where calls go out to, and whose certificates are believed there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::super::upstreams::{HostPort, host_port};
use super::super::{Context, paths, tls};
use crate::config::Trust;
use crate::config::problem::Problems;
use crate::config::settings::{Breaker, Endpoint, Upstream};
use crate::config::tree::Place;
use crate::config::value::{At, Field};

/// What all ways out have in common.
pub(in crate::config::meaning) struct Way {
    pub(in crate::config::meaning) trust: TrustSource,
    pub(in crate::config::meaning) connect_timeout: Duration,
    pub(in crate::config::meaning) timeout: Duration,
    pub(in crate::config::meaning) connections: usize,
}

/// Where a way leads.
pub(in crate::config::meaning) struct Target {
    pub(in crate::config::meaning) upstream: Arc<Upstream>,
    /// Path, and perhaps a query; starts with a slash.
    pub(in crate::config::meaning) path: String,
}

/// To whom plain HTTP may be spoken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::config::meaning) enum Plain {
    OnLoopback,
    Anywhere,
}

impl Way {
    pub(in crate::config::meaning) fn to(
        &mut self,
        url: &At<String>,
        name: String,
        plain: Plain,
        problems: &mut Problems,
    ) -> Option<Target> {
        let parsed = parse_url(&url.value);
        let Some(parsed) = parsed else {
            problems
                .error(&url.place, "bad_url", "is no URL that can be called")
                .help("write https://host/path, without a user; http:// is for addresses of this machine");
            return None;
        };
        let path = paths::upstream_path(
            At {
                place: url.place.clone(),
                value: parsed.path,
            },
            problems,
        )?;
        let HostPort { host, port } = parsed.authority;
        let endpoint = if parsed.tls {
            let trust = self.trust.get(&url.place, problems)?;
            Endpoint::Tls { host, port, trust }
        } else {
            let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            if plain == Plain::OnLoopback && !loopback {
                problems
                    .error(
                        &url.place,
                        "plain_http",
                        "plain http is for addresses of this machine, such as 127.0.0.1",
                    )
                    .help("write https://: what is sent here is worth money");
                return None;
            }
            Endpoint::Tcp { host, port }
        };
        let upstream = Upstream {
            name,
            endpoints: vec![endpoint],
            host: HeaderValue::from_str(&parsed.host).ok()?,
            connect_timeout: self.connect_timeout,
            answer_within: self.timeout,
            settle_within: self.timeout,
            max_in_flight: self.connections,
            set_headers: Vec::new(),
            breaker: Breaker::OFF,
            health: None,
        };
        Some(Target {
            upstream: Arc::new(upstream),
            path: path.value,
        })
    }
}

struct Url {
    tls: bool,
    authority: HostPort,
    /// As `Host` says it.
    host: String,
    path: String,
}

fn parse_url(text: &str) -> Option<Url> {
    let (tls, rest) = match text.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("http://")?),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    Some(Url {
        tls,
        authority: host_port(host, if tls { 443 } else { 80 })?,
        host: host.to_owned(),
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
    })
}

/// The certificates to believe, read when the first `https` asks for them.
pub(in crate::config::meaning) enum TrustSource {
    Wrong,
    System(Option<Trust>),
    File(Trust),
}

impl TrustSource {
    pub(in crate::config::meaning) fn read(ca: Field<String>, context: &mut Context<'_>) -> Self {
        if ca.is_absent() {
            return Self::System(None);
        }
        let place = ca.place.clone();
        let Some(roots) = tls::roots(ca, context) else {
            return Self::Wrong;
        };
        match Trust::new(roots, None) {
            Ok(trust) => Self::File(trust),
            Err(fault) => {
                context.problems.error(&place, "bad_ca", fault);
                Self::Wrong
            }
        }
    }

    fn get(&mut self, place: &Place, problems: &mut Problems) -> Option<Trust> {
        match self {
            Self::Wrong => None,
            Self::File(trust) | Self::System(Some(trust)) => Some(trust.clone()),
            Self::System(none) => match Trust::of_the_system() {
                Ok(trust) => none.insert(trust).clone().into(),
                Err(fault) => {
                    problems
                        .error(place, "no_certificates", fault)
                        .help("install ca-certificates, or name a PEM file with `ca`");
                    None
                }
            },
        }
    }
}
