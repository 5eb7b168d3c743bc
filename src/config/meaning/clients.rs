//! `[[clients]]`

use std::collections::HashSet;
use std::time::SystemTime;

use super::secrets::{self, ReadSecret};
use super::{Context, label, server, unique};
use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::settings::{Client, ClientSecret, Environment, Rate};
use crate::config::tree::Place;
use crate::config::value::{At, Field};
use crate::tiki::SigningKey;

/// A client, with what other checks need. Id and name are known even if the rest is wrong.
pub(crate) struct ReadClient {
    pub(crate) place: Place,
    pub(crate) id: Option<At<String>>,
    pub(crate) name: Option<At<String>>,
    pub(crate) environment: Environment,
    pub(crate) secrets: Vec<ReadSecret>,
    pub(crate) meaning: Option<Client>,
}

impl ReadClient {
    /// What routes and logs call it: the name, or the id.
    pub(crate) fn shown(&self) -> Option<&str> {
        let shown = self.name.as_ref().or(self.id.as_ref())?;
        Some(&shown.value)
    }
}

/// Reads all clients.
pub(crate) fn clients(
    written: Field<Vec<At<schema::Client>>>,
    context: &mut Context<'_>,
) -> Vec<ReadClient> {
    let wrong = !written.is_absent() && written.peek().is_none();
    let written = written.or(Vec::new());
    if written.value.is_empty() && !wrong {
        context
            .problems
            .error(&written.place, "missing", "at least one client is needed")
            .help("write [[clients]] with the client key that Tiki sends as id, and its secrets");
    }
    let clients: Vec<ReadClient> = written
        .value
        .into_iter()
        .map(|client| read(client, context))
        .collect();
    told_apart(&clients, context.problems);
    clients
}

fn told_apart(clients: &[ReadClient], problems: &mut Problems) {
    let ids = clients.iter().filter_map(|client| client.id.as_ref());
    unique(
        ids.map(|id| (&id.place, id.value.as_str())),
        "client",
        problems,
    );
    // A client without a name goes by its id; that two ids are the same was told just now.
    let mut ids = HashSet::new();
    let names = clients
        .iter()
        .filter(|client| {
            let id = client.id.as_ref().map(|id| &id.value);
            client.name.is_some() || ids.insert(id)
        })
        .filter_map(|client| client.name.as_ref().or(client.id.as_ref()))
        .map(|name| (&name.place, name.value.as_str()));
    unique(names, "client", problems);
}

fn read(written: At<schema::Client>, context: &mut Context<'_>) -> ReadClient {
    let At { place, value } = written;
    let schema::Client {
        id,
        name,
        environment,
        partner_code,
        secrets,
        rate,
    } = value;
    let problems = &mut *context.problems;
    let id = id.required(problems).and_then(|id| client_id(id, problems));
    let (name, name_fits) = match name.written() {
        Some(name) => {
            let fits = label(name.clone(), problems).is_some();
            (Some(name), fits)
        }
        None => (None, true),
    };
    let environment = environment.or(Environment::Production).value;
    let partner_code = partner_code
        .written()
        .and_then(|code| printable(code, problems));
    let rate = server::rate(
        rate,
        Rate {
            per_second: 100,
            burst: 200,
        },
        problems,
    );
    let (keys, read_secrets) = client_secrets(secrets, context);

    let shown = name.as_ref().or(id.as_ref()).map(|name| name.value.clone());
    let meaning = || {
        Some(Client {
            id: id.as_ref()?.value.clone(),
            name: name_fits.then_some(shown)??,
            environment,
            partner_code,
            secrets: keys?,
            rate,
        })
    };
    ReadClient {
        meaning: meaning(),
        place,
        id,
        name,
        environment,
        secrets: read_secrets,
    }
}

fn client_id(id: At<String>, problems: &mut Problems) -> Option<At<String>> {
    let fits =
        (1..=128).contains(&id.value.len()) && id.value.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        let message = "must be 1 to 128 printable ASCII characters without spaces";
        problems.error(&id.place, "bad_client_id", message);
        return None;
    }
    Some(id)
}

fn printable(code: At<String>, problems: &mut Problems) -> Option<String> {
    let fits = (1..=64).contains(&code.value.len())
        && code.value.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        let message = "must be 1 to 64 printable ASCII characters: it goes into a header";
        problems.error(&code.place, "bad_name", message);
        return None;
    }
    Some(code.value)
}

/// The keys if all are right, and every secret that could be read, for comparison.
fn client_secrets(
    field: Field<Vec<At<schema::SecretEntry>>>,
    context: &mut Context<'_>,
) -> (Option<Vec<ClientSecret>>, Vec<ReadSecret>) {
    let Some(written) = field.required(context.problems) else {
        return (None, Vec::new());
    };
    if written.value.is_empty() {
        let message = "at least one secret is needed";
        context.problems.error(&written.place, "empty", message);
    }
    let asked = written.value.len();
    let mut names: Vec<At<String>> = Vec::new();
    let mut keys = Vec::new();
    let mut read = Vec::new();
    for entry in written.value {
        let Some((name, not_after, secret)) = client_secret(entry, context) else {
            continue;
        };
        keys.push(ClientSecret {
            name: name.value.clone(),
            key: SigningKey::from_secret(secret.secret.expose()),
            not_after,
        });
        names.push(name);
        read.push(secret);
    }
    let labels = names.iter().map(|name| (&name.place, name.value.as_str()));
    unique(labels, "secret of this client", context.problems);
    same_bytes(&read, context.problems);
    let complete = asked > 0 && keys.len() == asked;
    (complete.then_some(keys), read)
}

fn client_secret(
    entry: At<schema::SecretEntry>,
    context: &mut Context<'_>,
) -> Option<(At<String>, Option<SystemTime>, ReadSecret)> {
    let At { place, value } = entry;
    let schema::SecretEntry {
        name,
        source,
        not_after,
    } = value;
    let name = name
        .required(context.problems)
        .and_then(|name| label(name, context.problems));
    let not_after = match not_after.written() {
        Some(written) => moment(written, context).map(Some),
        None => Some(None),
    };
    let secret = secrets::read(source, &place, context);
    Some((name?, not_after?, secret?))
}

fn moment(written: At<schema::NotAfter>, context: &mut Context<'_>) -> Option<SystemTime> {
    let parsed = written.value.0.parse::<jiff::Timestamp>();
    let Some(moment) = parsed.ok().and_then(|time| SystemTime::try_from(time).ok()) else {
        context
            .problems
            .error(&written.place, "bad_time", "is no moment")
            .help("write it with its offset: \"2026-12-31T00:00:00Z\" or \"2026-12-31T00:00:00+07:00\"");
        return None;
    };
    if moment <= context.now {
        context
            .problems
            .warning(
                &written.place,
                "expired",
                "has passed: the secret counts for nothing",
            )
            .help("take the entry out once nobody signs with it any more");
    }
    Some(moment)
}

fn same_bytes(read: &[ReadSecret], problems: &mut Problems) {
    for (index, one) in read.iter().enumerate() {
        if read[..index].iter().any(|other| other.secret == one.secret) {
            let message = "is the same secret as one before it";
            problems.warning(&one.place, "same_secret", message);
        }
    }
}
