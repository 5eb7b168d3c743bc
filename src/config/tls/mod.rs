//! Certificates: whose are believed, which are shown, and until when they hold.

mod files;
mod listener;
mod trust;

use std::time::{Duration, SystemTime};

pub(crate) use files::{PemFile, authorities, first_end};
pub use listener::ListenerTls;
pub(crate) use listener::{Identity, IdentityFault, digest_of, identity};
pub(crate) use trust::Roots;
pub use trust::Trust;

/// Until when the certificates of one file hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The key of the configuration that names the file.
    pub key: String,
    /// The end of the one that ends first.
    pub not_after: SystemTime,
}

impl Expiry {
    /// What to say about it at `now`, if it has ended or ends within `ahead`.
    pub fn trouble(&self, now: SystemTime, ahead: Duration) -> Option<String> {
        let Ok(left) = self.not_after.duration_since(now) else {
            return Some("the certificate has expired".to_owned());
        };
        let days = left.as_secs() / (24 * 3600);
        (left < ahead).then(|| match days {
            0 => "the certificate expires in less than a day".to_owned(),
            1 => "the certificate expires in a day".to_owned(),
            days => format!("the certificate expires in {days} days"),
        })
    }
}
