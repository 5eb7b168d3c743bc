//! A configuration that changes while calls run.

mod certificates;
mod load;
mod refused;
mod taken;

use crate::support::gate::changed;

/// The usual client's secrets, replaced by these: names and files.
fn with_secrets(backend: &str, secrets: &[(&str, &str)]) -> String {
    let listed: Vec<String> = secrets
        .iter()
        .map(|(name, file)| format!("{{ name = \"{name}\", file = \"{file}\" }}"))
        .collect();
    let usual = "partner_code = \"VNPAY\"\nsecrets = [{ name = \"now\", file = \"secret\" }]";
    let changed_to = format!(
        "partner_code = \"VNPAY\"\nsecrets = [{}]",
        listed.join(", ")
    );
    changed(backend, &[(usual, &changed_to)])
}
