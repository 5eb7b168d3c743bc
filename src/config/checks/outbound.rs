//! `[outbound]` beside the other parts.

use super::Parts;
use crate::config::meaning::ReadOutbound;
use crate::config::problem::Problems;
use crate::config::settings::Delivery;
use crate::net::ListenAddress;

pub(super) fn check(parts: &Parts<'_>, problems: &mut Problems) {
    confirms_by_an_account(parts, problems);
    let Some(outbound) = parts.outbound else {
        return;
    };
    listener_of_its_own(outbound, parts, problems);
    nobody_else_signs(outbound, problems);
    stores_durably(outbound, parts, problems);
}

fn listener_of_its_own(outbound: &ReadOutbound, parts: &Parts<'_>, problems: &mut Problems) {
    let listen = &outbound.listen;
    let chosen_by_system =
        matches!(&listen.value, ListenAddress::Tcp(address) if address.port() == 0);
    if chosen_by_system {
        return;
    }
    let admin = parts.admin.as_ref().map(|admin| &admin.listen.value);
    for (other, name) in [
        (Some(&parts.server.listen.value), "server.listen"),
        (admin, "admin.listen"),
    ] {
        if other == Some(&listen.value) {
            let message = format!("is the address of {name}");
            problems.error(&listen.place, "same_address", message);
        }
    }
}

/// Whatever is posted here is signed with the partner's secret.
fn nobody_else_signs(outbound: &ReadOutbound, problems: &mut Problems) {
    let local = match &outbound.listen.value {
        ListenAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
        ListenAddress::Unix(_) => true,
    };
    if !local && !outbound.has_token && !outbound.demands_certificate {
        problems
            .error(
                &outbound.listen.place,
                "open_signer",
                "other machines can reach it, and whatever they post would be signed as the partner's",
            )
            .help("listen on 127.0.0.1 or a unix socket, or demand a token: token = { file = \"outbound.token\" }, or a certificate: client_ca in [outbound.tls]");
    }
}

/// An answer of 202 is a promise.
fn stores_durably(outbound: &ReadOutbound, parts: &Parts<'_>, problems: &mut Problems) {
    let volatility = parts.volatility;
    if outbound.delivery == Delivery::Outbox && volatility.volatile && !volatility.allowed {
        problems
            .error(
                &outbound.place,
                "volatile_outbox",
                "payment notices are kept until Tiki has them, and a ledger in memory forgets them at exit",
            )
            .help("use store = \"sqlite\" or \"postgres\", or delivery = \"direct\"; to accept the loss, write allow_volatile = true under [ledger]");
    }
}

fn confirms_by_an_account(parts: &Parts<'_>, problems: &mut Problems) {
    for route in parts.routes {
        let Some(place) = &route.confirm else {
            continue;
        };
        let accounts = parts.outbound.map_or(&[][..], |outbound| &outbound.clients);
        let asked_by = |index: &usize| accounts.contains(index);
        let Some(without) = route.clients.indexes.iter().find(|index| !asked_by(index)) else {
            continue;
        };
        let client = parts
            .clients
            .get(*without)
            .and_then(|client| client.shown());
        problems
            .error(
                place,
                "unconfirmable",
                format!(
                    "asks Tiki as the client that calls, and `{}` has no account under [outbound]",
                    client.unwrap_or("?")
                ),
            )
            .help("add one: [[outbound.accounts]] with client = \"...\"");
    }
}
