//! What a caller of the outbound listener must show, where a token is configured.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use crate::config::Secret;

/// The token as of now, kept as its SHA-256, which is what is compared. Clones share it.
#[derive(Clone)]
pub struct CallerToken(Arc<ArcSwapOption<[u8; 32]>>);

impl CallerToken {
    /// This one; without one, whoever reaches the listener may call.
    pub fn new(token: Option<&Secret>) -> Self {
        Self(Arc::new(ArcSwapOption::from_pointee(
            token.map(|token| digest(token.expose())),
        )))
    }

    /// Wants this one from now on.
    pub fn renew(&self, token: Option<&Secret>) {
        let token = token.map(|token| Arc::new(digest(token.expose())));
        self.0.store(token);
    }

    /// Whether the call shows it: one `Authorization: Bearer`.
    pub(super) fn is_shown(&self, headers: &HeaderMap) -> bool {
        let wanted = self.0.load();
        let Some(wanted) = wanted.as_deref() else {
            return true;
        };
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (shown.next(), shown.next()) else {
            return false;
        };
        let bearer = value.as_bytes().strip_prefix(b"Bearer ");
        bearer.is_some_and(|bearer| digest(bearer) == *wanted)
    }
}

impl fmt::Debug for CallerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerToken")
    }
}

fn digest(text: &[u8]) -> [u8; 32] {
    Sha256::digest(text).into()
}
