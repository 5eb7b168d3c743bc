//! `[outbound]` as it is in force.

use serde_json::{Value, json};

use super::{REDACTED, format_duration, format_size, show_networks, show_rate, show_tls};
use crate::config::settings::{
    Account, Confirm, Delivery, Environment, Notify, Outbound, Outbox, Settings,
};

pub(super) fn show(outbound: &Outbound, settings: &Settings) -> Value {
    let Outbound {
        listen,
        token,
        tls,
        addresses,
        accounts,
        paths,
        body_limit,
        answer_limit,
        max_in_flight,
        timeout,
        forward_headers,
        delivery,
        outbox,
        confirm,
    } = outbound;
    let Outbox {
        retry_after,
        longest_pause,
        give_up_after,
        max_bytes,
        keep,
        max_deliveries,
        rate,
        notify,
    } = outbox;
    let Confirm {
        within,
        rate: confirm_rate,
    } = confirm;
    let delivery = match delivery {
        Delivery::Outbox => "outbox",
        Delivery::Direct => "direct",
    };
    let accounts: Vec<Value> = accounts
        .iter()
        .map(|account| show_account(account, settings))
        .collect();
    let mut shown = json!({
        "listen": listen.to_string(),
        "allow": show_networks(&addresses.allow),
        "deny": show_networks(&addresses.deny),
        "accounts": accounts,
        "body_limit": format_size(*body_limit),
        "answer_limit": format_size(*answer_limit),
        "max_in_flight": max_in_flight,
        "timeout": format_duration(*timeout),
        "forward_headers": forward_headers.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "delivery": delivery,
        "retry_after": format_duration(*retry_after),
        "longest_pause": format_duration(*longest_pause),
        "give_up_after": format_duration(*give_up_after),
        "max_bytes": format_size(*max_bytes),
        "keep": format_duration(*keep),
        "max_deliveries": max_deliveries,
        "rate": show_rate(rate),
        "confirm_within": format_duration(*within),
        "confirm_rate": show_rate(confirm_rate),
    });
    if token.is_some() {
        shown["token"] = json!(REDACTED);
    }
    if let Some(tls) = tls {
        shown["tls"] = show_tls(tls);
    }
    if let Some(paths) = paths {
        shown["paths"] = json!(paths);
    }
    if let Some(Notify { url, .. }) = notify {
        shown["notify_url"] = json!(url);
    }
    shown
}

fn show_account(account: &Account, settings: &Settings) -> Value {
    let Account {
        client,
        family,
        base_url,
        base_path: _,
        upstream,
    } = account;
    let client = settings.clients.get(*client);
    let environment = client.map_or("", |client| match client.environment {
        Environment::Production => "production",
        Environment::Sandbox => "sandbox",
    });
    json!({
        "client": client.map_or("", |client| client.name.as_str()),
        "environment": environment,
        "base_url": base_url,
        "family": family.as_str(),
        "connect_timeout": format_duration(upstream.connect_timeout),
    })
}
