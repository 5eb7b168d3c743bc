//! Who the calls are signed as.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::config::{self, Settings};
use crate::tiki::{Family, Mac, SigningKey, Timestamp};

/// Told of each signature before its first byte goes out: it must not count at the gate's own door,
/// since the same secret signs both directions. Says whether there was room to remember it.
pub type Remember = Arc<dyn Fn(&Mac) -> bool + Send + Sync>;

/// One account at Tiki, ready to sign.
pub struct Account {
    /// Its place among the accounts.
    pub index: usize,
    /// The client id.
    pub id: Arc<str>,
    /// The client's name, for logs.
    pub name: String,
    /// Where its calls go: what a delivery is pinned to.
    pub base_url: Arc<str>,
    pub(super) base_path: String,
    pub(super) family: Family,
    id_value: HeaderValue,
    /// Renewed when the configuration is.
    secrets: ArcSwap<Vec<config::ClientSecret>>,
    pub(super) upstream: Arc<config::Upstream>,
    remember: Remember,
    /// Why its last call got no answer, if it got none.
    trouble: Mutex<Option<&'static str>>,
}

/// The headers of a signed call.
pub(super) struct Signed {
    pub(super) timestamp: HeaderValue,
    pub(super) client_id: HeaderValue,
    pub(super) signature: HeaderValue,
}

/// Why nothing can be signed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsigned {
    /// Every secret of the client has ended.
    #[error("every secret of the client has passed its not_after")]
    NoSecret,
    /// The clock says a time that no timestamp can.
    #[error("the machine's clock is out of all bounds")]
    Clock,
    /// The gate remembers as many signatures as it may.
    #[error("too many signatures are remembered (signature.max_remembered)")]
    Crowded,
    /// It is no target of a request.
    #[error("the path below the base URL makes no request target")]
    Target,
}

impl Account {
    /// Signs a body, or for GET a path and query, at this time.
    ///
    /// # Errors
    /// See [`Unsigned`].
    pub(super) fn sign(&self, now: SystemTime, signed: &[u8]) -> Result<Signed, Unsigned> {
        let timestamp = Timestamp::from_system_time(now).ok_or(Unsigned::Clock)?;
        let key = self.key(now).ok_or(Unsigned::NoSecret)?;
        let mac = key.sign(timestamp, &self.id, signed);
        if !(self.remember)(&mac) {
            return Err(Unsigned::Crowded);
        }
        let value = |text: String| HeaderValue::try_from(text).map_err(|_| Unsigned::Clock);
        Ok(Signed {
            timestamp: value(timestamp.to_string())?,
            client_id: self.id_value.clone(),
            signature: value(mac.to_hex())?,
        })
    }

    /// Notes how its last call went.
    pub(super) fn note(&self, trouble: Option<&'static str>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn trouble(&self) -> Option<&'static str> {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest secret that counts: they are listed newest first.
    fn key(&self, now: SystemTime) -> Option<SigningKey> {
        let secrets = self.secrets.load();
        let mut counting = secrets
            .iter()
            .filter(|secret| secret.not_after.is_none_or(|end| now < end));
        counting.next().map(|secret| secret.key.clone())
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("name", &self.name)
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}

/// All accounts; the first is the default.
#[derive(Clone, Debug)]
pub struct Accounts(Arc<[Arc<Account>]>);

impl Accounts {
    /// The settings' accounts.
    ///
    /// # Errors
    /// What `check` refuses before: none, or a client id that can't be a header's value.
    pub fn new(
        settings: &Settings,
        outbound: &config::Outbound,
        remember: &Remember,
    ) -> Result<Self, String> {
        let read = |(index, account): (usize, &Arc<config::Account>)| {
            let client = settings.clients.get(account.client);
            let client = client.ok_or_else(|| format!("{}: no client", account.base_url))?;
            Ok(Arc::new(Account {
                index,
                id: Arc::from(client.id.as_str()),
                name: client.name.clone(),
                base_url: Arc::from(account.base_url.as_str()),
                base_path: account.base_path.clone(),
                family: account.family,
                id_value: HeaderValue::from_str(&client.id)
                    .map_err(|_| format!("client {}: not a header's value", client.name))?,
                secrets: ArcSwap::from_pointee(client.secrets.clone()),
                upstream: Arc::clone(&account.upstream),
                remember: Arc::clone(remember),
                trouble: Mutex::default(),
            }))
        };
        let accounts = outbound.accounts.iter().enumerate().map(read);
        let accounts: Vec<Arc<Account>> = accounts.collect::<Result<_, String>>()?;
        if accounts.is_empty() {
            return Err("no account under [outbound]".to_owned());
        }
        Ok(Self(accounts.into()))
    }

    /// Signs with these settings' secrets from now on. An account whose client is gone keeps its own.
    pub fn renew(&self, settings: &Settings) {
        for account in self.iter() {
            let mut clients = settings.clients.iter();
            if let Some(client) = clients.find(|client| *client.id == *account.id) {
                account.secrets.store(Arc::new(client.secrets.clone()));
            }
        }
    }

    /// The account of this client id; without one, the first.
    pub fn choose(&self, id: Option<&str>) -> Option<&Arc<Account>> {
        match id {
            None => self.0.first(),
            Some(id) => self.0.iter().find(|account| &*account.id == id),
        }
    }

    /// The account that a delivery is pinned to, if it is still configured.
    pub fn pinned(&self, id: &str, base_url: &str) -> Option<&Arc<Account>> {
        self.choose(Some(id))
            .filter(|account| &*account.base_url == base_url)
    }

    /// What deliveries may be pinned to: client ids and base URLs.
    pub(super) fn pins(&self) -> Vec<(String, String)> {
        let accounts = self.iter();
        accounts
            .map(|account| (account.id.to_string(), account.base_url.to_string()))
            .collect()
    }

    /// Who can't reach Tiki by the last calls' experience, one short sentence each.
    pub fn degraded(&self) -> Vec<String> {
        let told = |account: &Arc<Account>| {
            let reason = account.trouble()?;
            Some(format!(
                "Tiki is out of reach for {} ({reason})",
                account.name
            ))
        };
        self.0.iter().filter_map(told).collect()
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Account>> {
        self.0.iter()
    }
}
