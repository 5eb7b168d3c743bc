//! What can't change while the gate runs.

use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Account, Client, Outbound, Settings, Store, effective};

/// What the lease of a shared ledger has over the longest `settle_within`.
const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Takes what needs a restart from the running settings, and names what would have been different.
///
/// # Errors
/// The rest can't do without what needs a restart; a sentence.
pub(super) fn keep(new: &mut Settings, running: &Settings) -> Result<Vec<&'static str>, String> {
    let mut waiting = Vec::new();
    let mut keep = |key, differs: bool| {
        if differs {
            waiting.push(key);
        }
    };
    keep("server.listen", new.server.listen != running.server.listen);
    new.server.listen.clone_from(&running.server.listen);
    keep(
        "server.workers",
        new.server.workers != running.server.workers,
    );
    new.server.workers = running.server.workers;
    keep("admin.listen", new.admin.listen != running.admin.listen);
    new.admin.listen.clone_from(&running.admin.listen);
    keep(
        "signature.max_remembered",
        new.signature.max_remembered != running.signature.max_remembered,
    );
    new.signature.max_remembered = running.signature.max_remembered;
    keep("log.format", new.log.format != running.log.format);
    new.log.format = running.log.format;
    keep("tracing", new.tracing != running.tracing);
    new.tracing.clone_from(&running.tracing);
    keep("ledger", ledger_differs(new, running)?);
    new.ledger = running.ledger.clone();
    keep("outbound", outbound_differs(new, running)?);
    let (new_clients, running_clients) = (new.clients.clone(), &running.clients);
    new.outbound = match (&new.outbound, &running.outbound) {
        (Some(new), Some(running)) => Some(Arc::new(Outbound {
            token: new.token.clone(),
            tls: new.tls.clone(),
            addresses: new.addresses.clone(),
            accounts: accounts_among(&new_clients, running, running_clients),
            ..Outbound::clone(running)
        })),
        (_, running) => running.clone(),
    };
    Ok(waiting)
}

/// The running accounts, each by its client's place among the new ones: it is told by the id.
fn accounts_among(
    new: &[Arc<Client>],
    running: &Outbound,
    running_clients: &[Arc<Client>],
) -> Vec<Arc<Account>> {
    let place = |account: &Account| {
        let id = running_clients.get(account.client).map(|client| &client.id);
        new.iter().position(|client| Some(&client.id) == id)
    };
    let accounts = running.accounts.iter();
    accounts
        .map(|account| {
            Arc::new(Account {
                // One whose client is gone signs on as it did until the restart that was asked for.
                client: place(account).unwrap_or(usize::MAX),
                ..Account::clone(account)
            })
        })
        .collect()
}

fn ledger_differs(new: &Settings, running: &Settings) -> Result<bool, String> {
    let (store, before) = (&new.ledger.store, &running.ledger.store);
    if discriminant(store) != discriminant(before) {
        // Which routes may rest on which store was judged for both together.
        return Err("ledger.store can't change while the gate runs: restart it".to_owned());
    }
    let differs = match (store, before) {
        (Store::Sqlite(new), Store::Sqlite(before)) => {
            if new.holds && !before.holds {
                return Err(
                    "the first route that holds was added, and the ledger's file system was not \
                     looked at for one: restart the gate"
                        .to_owned(),
                );
            }
            new.path != before.path
                || new.watermark != before.watermark
                || new.require_existing != before.require_existing
                || new.allow_unsafe_filesystem != before.allow_unsafe_filesystem
        }
        (Store::Postgres(postgres), Store::Postgres(before)) => {
            let upstreams = new.upstreams.iter();
            let longest = upstreams.map(|upstream| upstream.settle_within).max();
            if longest.unwrap_or_default() + LEASE_MARGIN > before.lease {
                return Err(
                    "a settle_within is longer than the running lease of the ledger allows: \
                     restart the gate"
                        .to_owned(),
                );
            }
            postgres.url != before.url
                || postgres.ca != before.ca
                || postgres.connections != before.connections
                || postgres.require_existing != before.require_existing
        }
        (
            Store::Memory {
                max_records,
                max_bytes,
            },
            Store::Memory {
                max_records: records_before,
                max_bytes: bytes_before,
            },
        ) => max_records != records_before || max_bytes != bytes_before,
        // Told apart above.
        _ => true,
    };
    Ok(differs)
}

/// Whether anything differs beside what is swapped: secrets, the token, TLS and addresses.
fn outbound_differs(new: &Settings, running: &Settings) -> Result<bool, String> {
    let (outbound, before) = match (&new.outbound, &running.outbound) {
        (None, None) => return Ok(false),
        (Some(outbound), Some(before)) => (outbound, before),
        (Some(_), None) if new.routes.iter().any(|route| route.confirm) => {
            return Err(
                "[outbound] was added, and a route with `confirm` needs it: restart the gate"
                    .to_owned(),
            );
        }
        _ => return Ok(true),
    };
    let shown = |settings: &Settings| {
        let mut shown = effective(settings)["outbound"].take();
        if let Some(keys) = shown.as_object_mut() {
            for swapped in ["token", "tls", "allow", "deny"] {
                keys.remove(swapped);
            }
        }
        shown
    };
    // What is not shown: whose certificates are believed, and a client's id behind its name.
    let behind = |outbound: &Outbound, clients: &[Arc<Client>]| -> Vec<_> {
        let accounts = outbound.accounts.iter();
        accounts
            .map(|account| {
                let client = clients.get(account.client);
                let id = client.map(|client| client.id.clone());
                (id, account.upstream.endpoints.clone())
            })
            .collect()
    };
    Ok(shown(new) != shown(running)
        || behind(outbound, &new.clients) != behind(before, &running.clients))
}
