//! `[ledger]`: which store, and what it needs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::super::{Ledger, Problem, SqliteStore, Store, effective};
use super::{
    GOOD, SECRET, directory, good_but, load, load_in, only_error, only_warning, settings, told,
    write,
};

const OWN: &str = "store = \"memory\"\nallow_volatile = true\n";
const URL: &str = "postgres://gate:s3cr3t-bytes-of-a-client@db.internal:5432/tikigate";

/// [`GOOD`] with this as its `[ledger]`.
fn ledger(keys: &str) -> String {
    good_but(OWN, &format!("{keys}\n"))
}

fn sqlite(keys: &str) -> SqliteStore {
    match settings(&ledger(keys)).ledger.store {
        Store::Sqlite(store) => store,
        other => panic!("{other:?}"),
    }
}

/// A ledger in PostgreSQL whose URL is in a variable.
fn postgres_at(url: &str, keys: &str) -> Result<Ledger, Vec<Problem>> {
    let text = ledger(&format!(
        "store = \"postgres\"\nurl = {{ env = \"DATABASE_URL\" }}\n{keys}"
    ));
    let loaded = load_in(directory().path(), &text, &[("DATABASE_URL", url)])?;
    assert_eq!(loaded.warnings, []);
    Ok(loaded.settings.ledger)
}

#[track_caller]
fn refused_url(url: &str) {
    let problems = postgres_at(url, "").unwrap_err();
    let shown = told(&problems);
    assert_eq!(problems.len(), 1, "{shown}");
    assert_eq!(
        (problems[0].code, problems[0].key.as_str()),
        ("bad_url", "ledger.url.env")
    );
    assert!(!shown.contains(SECRET), "{shown}");
}

#[test]
fn left_out_the_store_is_sqlite_beside_the_file() {
    let directory = directory();
    for keys in ["", "store = \"sqlite\""] {
        let loaded = load_in(directory.path(), &ledger(keys), &[]).unwrap();
        assert_eq!(loaded.warnings, []);
        let read = loaded.settings.ledger;
        let Store::Sqlite(store) = read.store else {
            panic!("{:?}", read.store)
        };
        let expected = SqliteStore {
            path: directory.path().join("tikigate.db"),
            watermark: directory.path().join("tikigate.mark"),
            require_existing: false,
            allow_unsafe_filesystem: false,
            holds: true,
        };
        assert_eq!(store, expected);
        assert_eq!(read.directory, directory.path());
    }
    let none = good_but(&format!("[ledger]\n{OWN}"), "");
    assert!(matches!(settings(&none).ledger.store, Store::Sqlite(_)));
}

#[test]
fn a_made_token_lies_beside_the_database() {
    let read = settings(&ledger("path = \"/var/lib/tikigate/books.db\"")).ledger;
    assert_eq!(read.directory, Path::new("/var/lib/tikigate"));
    let directory = directory();
    let loaded = load_in(directory.path(), &ledger("path = \"data/a.db\""), &[]).unwrap();
    assert_eq!(
        loaded.settings.ledger.directory,
        directory.path().join("data")
    );
}

#[test]
fn the_watermark_is_named_for_the_database() {
    for (path, watermark) in [
        ("/d/books.db", "/d/books.mark"),
        ("/d/books", "/d/books.mark"),
        ("/d/books.mark", "/d/books.mark.mark"),
        ("/d.x/books.sqlite3", "/d.x/books.mark"),
    ] {
        let store = sqlite(&format!("path = \"{path}\""));
        assert_eq!(store.watermark, Path::new(watermark), "{path}");
    }
    let store = sqlite("path = \"/d/a.db\"\nwatermark = \"/e/a.db\"\nrequire_existing = true");
    assert_eq!(store.watermark, Path::new("/e/a.db"));
    assert!(store.require_existing);
}

#[test]
fn a_watermark_is_no_part_of_what_it_watches() {
    for watermark in [
        "a.db",
        "./a.db",
        "x/../a.db",
        "a.db-wal",
        "a.db-shm",
        "a.db-journal",
        "a.db.lock",
        "a.db/mark",
    ] {
        let text = ledger(&format!("path = \"a.db\"\nwatermark = \"{watermark}\""));
        let problem = only_error(&text, "bad_watermark", "ledger.watermark");
        assert!(problem.help.unwrap().contains("another volume"));
    }
    let text = ledger("path = \"mark/a.db\"\nwatermark = \"mark\"");
    only_error(&text, "bad_watermark", "ledger.watermark");
    let text = ledger("watermark = \"tikigate.db\"");
    let problem = only_error(&text, "bad_watermark", "ledger.watermark");
    let line = text
        .lines()
        .position(|line| line.starts_with("watermark"))
        .unwrap();
    assert_eq!(problem.line, Some(line + 1));
    sqlite("path = \"/d/a.db\"\nwatermark = \"/d/../e/a.db\"");
}

#[test]
fn a_database_is_a_plain_file() {
    for path in [
        "",
        ".",
        "..",
        "/",
        "data/",
        ":memory:",
        "file:a.db?mode=memory",
        "a\\u0000b",
    ] {
        for key in ["path", "watermark"] {
            let text = ledger(&format!("{key} = \"{path}\""));
            only_error(&text, "bad_path", &format!("ledger.{key}"));
        }
    }
    let directory = directory();
    fs::create_dir(directory.path().join("tikigate.db")).unwrap();
    let problems = load_in(directory.path(), &ledger(""), &[]).unwrap_err();
    assert_eq!(problems[0].code, "bad_path", "{}", told(&problems));
    let problem = only_error(&ledger("path = \":memory:\""), "bad_path", "ledger.path");
    assert!(problem.help.unwrap().contains("store = \"memory\""));
}

#[test]
fn an_unsafe_file_system_is_allowed_aloud() {
    let text = ledger("allow_unsafe_filesystem = true");
    only_warning(&text, "unsafe_filesystem", "ledger.allow_unsafe_filesystem");
    let Store::Sqlite(store) = load(&text).unwrap().settings.ledger.store else {
        panic!("sqlite is the default")
    };
    assert!(store.allow_unsafe_filesystem);
}

#[test]
fn what_the_file_system_must_be_like_depends_on_the_routes() {
    assert!(sqlite("").holds);
    let ipns = ledger("").replace("payload = \"refund\"", "payload = \"transaction_ipn\"");
    let holds = |text: &str| match settings(text).ledger.store {
        Store::Sqlite(store) => store.holds,
        other => panic!("{other:?}"),
    };
    assert!(!holds(&ipns));
    let held = "payload = \"transaction_ipn\"\nidempotency = { on_unknown = \"hold\" }";
    assert!(holds(&ipns.replace("payload = \"transaction_ipn\"", held)));
    let resent = "payload = \"refund\"\nidempotency = { on_unknown = \"resend\" }";
    let loaded = load(&ledger("").replace("payload = \"refund\"", resent)).unwrap();
    let Store::Sqlite(store) = loaded.settings.ledger.store else {
        panic!("sqlite is the default")
    };
    assert!(store.holds, "what was done must not be forgotten either");
}

#[test]
fn a_key_of_another_store_is_told_with_its_own() {
    for (store, keys, key, own) in [
        ("memory", "path = \"a.db\"", "path", "\"sqlite\""),
        ("memory", "watermark = \"a\"", "watermark", "\"sqlite\""),
        (
            "memory",
            "allow_unsafe_filesystem = false",
            "allow_unsafe_filesystem",
            "\"sqlite\"",
        ),
        ("memory", "connections = 8", "connections", "\"postgres\""),
        ("memory", "lease = \"150s\"", "lease", "\"postgres\""),
        ("memory", "ca = \"ca.crt\"", "ca", "\"postgres\""),
        (
            "memory",
            "require_existing = false",
            "require_existing",
            "\"sqlite\" or \"postgres\"",
        ),
        ("sqlite", "max_records = 5", "max_records", "\"memory\""),
        ("sqlite", "max_bytes = \"1MiB\"", "max_bytes", "\"memory\""),
        (
            "sqlite",
            "allow_volatile = true",
            "allow_volatile",
            "\"memory\"",
        ),
        (
            "sqlite",
            "url = { env = \"DATABASE_URL\" }",
            "url",
            "\"postgres\"",
        ),
    ] {
        let volatile = match store {
            "memory" => "allow_volatile = true\n",
            _ => "",
        };
        let text = ledger(&format!("store = \"{store}\"\n{volatile}{keys}"));
        let problem = only_error(&text, "other_store", &format!("ledger.{key}"));
        assert!(
            problem.message.contains(&format!("store = {own}")),
            "{problem}"
        );
        assert!(
            problem.message.ends_with(&format!("is \"{store}\"")),
            "{problem}"
        );
    }
    let problems = postgres_at(URL, "path = \"a.db\"").unwrap_err();
    assert_eq!(problems.len(), 1, "{}", told(&problems));
    assert_eq!(problems[0].code, "other_store");
}

#[test]
fn a_shared_ledger_has_its_documented_defaults() {
    let read = postgres_at(URL, "").unwrap();
    let Store::Postgres(store) = read.store else {
        panic!("{:?}", read.store)
    };
    assert_eq!(store.url.expose(), URL.as_bytes());
    assert_eq!(store.ca, None);
    assert_eq!(store.connections, 8);
    assert_eq!(store.lease, Duration::from_secs(150));
    assert!(!store.require_existing);
    assert!(!format!("{store:?}").contains(SECRET));
}

#[test]
fn the_url_is_read_strictly_and_never_shown() {
    for url in [
        "postgresql://gate@/var/lib",
        "postgres://gate@",
        "postgres:///tikigate",
        "postgres://db/tikigate",
        "mysql://gate:s3cr3t-bytes-of-a-client@db/x",
        "host=db user=gate password=s3cr3t-bytes-of-a-client",
        "s3cr3t-bytes-of-a-client",
        "postgres://gate:s3cr3t-bytes-of-a-client@db:port/x",
        "postgres://gate@db/x?s3cr3t-bytes-of-a-client=1",
        "postgres://gate:s3cr3t-bytes-of-a-client@db/x?sslmode=sometimes",
        "postgres://gate:s3cr3t-bytes-of-a-client@db/x?sslmode=disable",
    ] {
        refused_url(url);
    }
    for url in [
        "postgres://gate@db/tikigate",
        "postgresql://gate:p%40ss@127.0.0.1:5432/tikigate?sslmode=require",
        "postgres://gate@db/tikigate?sslmode=verify-full",
        "postgres://gate@127.0.0.1/tikigate?sslmode=disable",
        "postgres://gate@one:5432,two:5433/tikigate?target_session_attrs=read-write",
        "postgres://gate@%2Fvar%2Frun%2Fpostgresql/tikigate",
    ] {
        postgres_at(url, "").unwrap();
    }
    only_error(&ledger("store = \"postgres\""), "missing", "ledger.url");
    let inline = ledger(&format!("store = \"postgres\"\nurl = \"{URL}\""));
    let problem = only_error(&inline, "inline_secret", "ledger.url");
    assert!(!problem.to_string().contains(SECRET));

    let text = ledger("store = \"postgres\"\nurl = { file = \"url\" }");
    let directory = directory();
    write(directory.path(), "url", format!("{URL}\n").as_bytes());
    let loaded = load_in(directory.path(), &text, &[]).unwrap();
    let shown = effective(&loaded.settings);
    assert_eq!(shown["ledger"]["url"], "[redacted]");
    assert!(!shown.to_string().contains(SECRET));
    assert!(!format!("{:?}", loaded.settings).contains(SECRET));
}

#[test]
fn certificates_are_there_and_are_certificates() {
    let directory = directory();
    write(directory.path(), "ca.crt", b"no certificate");
    let url = [("DATABASE_URL", URL)];
    let text = |ca: &str| {
        ledger(&format!(
            "store = \"postgres\"\nurl = {{ env = \"DATABASE_URL\" }}\nca = \"{ca}\""
        ))
    };
    for ca in ["ca.crt", "absent.crt"] {
        let problems = load_in(directory.path(), &text(ca), &url).unwrap_err();
        let found: Vec<_> = problems.iter().map(|one| (one.code, &*one.key)).collect();
        assert_eq!(found, [("bad_ca", "ledger.ca")], "{}", told(&problems));
    }
    // What it certifies is for the connection to find out.
    let pem = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n";
    write(directory.path(), "ca.crt", pem.as_bytes());
    let loaded = load_in(directory.path(), &text("ca.crt"), &url).unwrap();
    let Store::Postgres(store) = loaded.settings.ledger.store else {
        panic!("the text says postgres")
    };
    assert_eq!(store.ca, Some(directory.path().join("ca.crt")));
}

#[test]
fn a_lease_outlasts_every_call() {
    let with = |settle: &str, lease: &str| {
        let text = GOOD
            .replace(
                "[upstreams.legacy]\n",
                &format!(
                    "[upstreams.legacy]\nanswer_within = \"2s\"\nsettle_within = \"{settle}\"\n"
                ),
            )
            .replace(
                OWN,
                &format!("store = \"postgres\"\nurl = {{ env = \"DATABASE_URL\" }}\n{lease}\n"),
            )
            .replace("listen = \"127.0.0.1:8080\"", "drain_within = \"1h\"");
        load_in(directory().path(), &text, &[("DATABASE_URL", URL)]).map(|loaded| {
            match loaded.settings.ledger.store {
                Store::Postgres(store) => store.lease.as_secs(),
                other => panic!("{other:?}"),
            }
        })
    };
    assert_eq!(with("60s", "").unwrap(), 150);
    assert_eq!(with("61s", "").unwrap(), 151);
    assert_eq!(with("1h", "").unwrap(), 3690);
    assert_eq!(with("2s", "lease = \"12s\"").unwrap(), 12);
    assert_eq!(with("60s", "lease = \"1d\"").unwrap(), 86_400);
    for (settle, lease, code) in [
        ("2s", "lease = \"11999ms\"", "short_lease"),
        ("1h", "lease = \"150s\"", "short_lease"),
        ("2s", "lease = \"9s\"", "out_of_bounds"),
        ("2s", "lease = \"25h\"", "out_of_bounds"),
    ] {
        let problems = with(settle, lease).unwrap_err();
        let found: Vec<_> = problems.iter().map(|one| (one.code, &*one.key)).collect();
        assert_eq!(found, [(code, "ledger.lease")], "{}", told(&problems));
    }
    let problems = with("1h", "lease = \"150s\"").unwrap_err();
    assert!(problems[0].help.as_ref().unwrap().contains("1h10s"));
}

#[test]
fn connections_are_bounded() {
    for count in [0, 65] {
        let problems = postgres_at(URL, &format!("connections = {count}")).unwrap_err();
        assert_eq!(
            (problems[0].code, &*problems[0].key),
            ("out_of_bounds", "ledger.connections")
        );
    }
    for count in [1, 64] {
        postgres_at(URL, &format!("connections = {count}")).unwrap();
    }
}

#[test]
fn the_settings_in_force_name_the_store() {
    let shown = |keys: &str| effective(&settings(&ledger(keys)))["ledger"].clone();
    let sqlite = shown("path = \"/d/a.db\"");
    assert_eq!(sqlite["store"], "sqlite");
    assert_eq!(sqlite["path"], "/d/a.db");
    assert_eq!(sqlite["watermark"], "/d/a.mark");
    assert_eq!(sqlite["require_existing"], false);
    assert_eq!(sqlite["allow_unsafe_filesystem"], false);
    assert!(sqlite.get("max_records").is_none());
    assert_eq!(shown(OWN)["store"], "memory");

    let text = ledger("store = \"postgres\"\nurl = { env = \"DATABASE_URL\" }");
    let loaded = load_in(directory().path(), &text, &[("DATABASE_URL", URL)]).unwrap();
    let postgres = effective(&loaded.settings);
    assert_eq!(postgres["ledger"]["lease"], "2m30s");
    // Nothing in it is null: it is written as TOML too.
    assert!(toml::to_string(&postgres).is_ok());
}
