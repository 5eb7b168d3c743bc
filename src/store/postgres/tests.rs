//! What is asked of a server before it is used, on real ones.

use std::process::Command;

use super::server::Server;
use super::*;
use crate::config::Secret;

/// Nothing here waits longer for the other side.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(url: String) -> PostgresStore {
    PostgresStore {
        url: Secret::new(url.into_bytes()),
        ca: None,
        connections: 2,
        lease: Duration::from_secs(60),
        require_existing: false,
    }
}

/// A database of its own on the shared server, that no store has seen.
fn database() -> (String, PostgresStore) {
    let name = Server::shared().create_database();
    let settings = settings(Server::shared().url(&name));
    (name, settings)
}

fn refusal(settings: &PostgresStore) -> OpenError {
    match Store::open(settings) {
        Ok(store) => panic!("it opened; trouble: {:?}", store.trouble()),
        Err(error) => error,
    }
}

async fn asked(store: &Store, statement: &'static str) -> Result<String, Fault> {
    let answer = store.run(async move |session: &mut Session| {
        let rows = session.query_once(statement, &[]).await?;
        Ok(rows[0].get::<_, String>(0))
    });
    tokio::time::timeout(PATIENCE, answer).await.unwrap()
}

#[tokio::test]
async fn sessions_are_set_up_to_be_safe() {
    let (name, settings) = database();
    let lax = format!(
        "alter database {name} set synchronous_commit = off;
         alter database {name} set default_transaction_isolation = 'serializable'"
    );
    Server::shared().query("postgres", &lax);
    let store = Store::open(&settings).unwrap();
    let safe = asked(
        &store,
        "select concat_ws(' ', current_setting('synchronous_commit'),
            current_setting('default_transaction_isolation'), current_setting('statement_timeout'))",
    );
    assert_eq!(safe.await.unwrap(), "on read committed 5s");
    // What waits for more than the disk stays.
    let strict = format!("alter database {name} set synchronous_commit = remote_apply");
    Server::shared().query("postgres", &strict);
    let store = Store::open(&settings).unwrap();
    let kept = asked(&store, "select current_setting('synchronous_commit')");
    assert_eq!(kept.await.unwrap(), "remote_apply");
}

#[test]
fn a_database_without_a_ledger_gets_one_unless_there_must_be_one() {
    let (name, settings) = database();
    let must = PostgresStore {
        require_existing: true,
        ..settings.clone()
    };
    assert!(matches!(refusal(&must), OpenError::NoLedger));
    let there = "select to_regnamespace('tikigate') is null";
    assert_eq!(Server::shared().query(&name, there), "t");
    drop(Store::open(&settings).unwrap());
    drop(Store::open(&must).unwrap());
}

#[test]
fn two_gates_at_once_make_one_ledger() {
    let (name, settings) = database();
    let open = || Store::open(&settings).unwrap();
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        for opened in opening {
            assert_eq!(opened.join().unwrap().trouble(), None);
        }
    });
    let ledgers = "select count(*) from tikigate.ledger";
    assert_eq!(Server::shared().query(&name, ledgers), "1");
}

#[test]
fn a_newer_schema_is_refused() {
    let (name, settings) = database();
    drop(Store::open(&settings).unwrap());
    Server::shared().query(&name, "update tikigate.ledger set schema_version = 99");
    let error = refusal(&settings);
    assert!(matches!(error, OpenError::NewerSchema { found: 99, .. }));
    assert!(error.to_string().contains("run the newer tikigate"));
}

/// What a later version may know: one more migration, on a schema that `version` must know.
fn later(version: i32) -> Migrations {
    static STEPS: [&str; 3] = [
        schema::MIGRATIONS.steps[0],
        schema::MIGRATIONS.steps[1],
        "alter table tikigate.ledger_event add column of_a_later_version text",
    ];
    assert_eq!(schema::MIGRATIONS.steps.len(), 2, "one more, above");
    Migrations {
        steps: &STEPS,
        version,
    }
}

/// And an earlier one.
const EARLIER: Migrations = Migrations {
    steps: schema::MIGRATIONS.steps.split_at(1).0,
    version: 1,
};

/// A ledger as the earlier one made it, before there was a column for the revision.
fn as_earlier() -> String {
    format!(
        "set role gate; {}; reset role; insert into tikigate.ledger (schema_version, system_identifier, timeline)
         select 1, system_identifier::text, timeline_id from pg_control_system(), pg_control_checkpoint()",
        EARLIER.steps[0]
    )
}

/// In a rolling update: gates that don't know a revision go on, and new ones of them may start.
#[test]
fn what_a_newer_gate_added_is_nothing_to_an_older_one() {
    let (name, settings) = database();
    let revision = || Server::shared().query(&name, "select revision from tikigate.ledger");
    Server::shared().query(&name, &as_earlier());
    let store = Store::open(&settings).unwrap();
    assert_eq!((store.trouble(), revision().as_str()), (None, "2"));
    let newer = Store::open_knowing(later(1), &settings).unwrap();
    assert_eq!((newer.trouble(), revision().as_str()), (None, "3"));
    for _ in 0..2 {
        let older = Store::open(&settings).unwrap();
        assert_eq!((older.trouble(), revision().as_str()), (None, "3"));
    }
}

/// Somebody reads the ledger for a while (a dump, an open transaction) when a newer gate wants to change its
/// tables: gates that run don't wait behind it.
#[tokio::test]
async fn a_migration_that_has_to_wait_holds_no_running_gate_up() {
    let (name, settings) = database();
    Server::shared().query(&name, &as_earlier());
    let running = Store::open_knowing(EARLIER, &settings).unwrap();
    let reading = format!("reader_{name}");
    let reader = std::thread::spawn({
        let (name, reading) = (name.clone(), reading.clone());
        move || {
            let read = format!(
                "set application_name = '{reading}'; begin; select count(*) from tikigate.ledger; select pg_sleep(3); commit"
            );
            Server::shared().query(&name, &read);
        }
    });
    let sleeps = format!(
        "select count(*) from pg_stat_activity where application_name = '{reading}' and wait_event = 'PgSleep'"
    );
    while Server::shared().query(&name, &sleeps) != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let newer = tokio::task::spawn_blocking(move || Store::open(&settings).unwrap());
    let mut slowest = Duration::ZERO;
    while !reader.is_finished() {
        let began = std::time::Instant::now();
        asked(
            &running,
            "select coalesce(quarantine, '') from tikigate.ledger",
        )
        .await
        .unwrap();
        slowest = slowest.max(began.elapsed());
    }
    reader.join().unwrap();
    assert!(slowest < Duration::from_millis(1500), "{slowest:?}");
    // Then it comes to it.
    let newer = newer.await.unwrap();
    let revision = || {
        Server::shared().query(
            &name,
            "select to_jsonb(l) ->> 'revision' from tikigate.ledger l",
        )
    };
    let began = std::time::Instant::now();
    while (newer.trouble(), revision().as_str()) != (None, "2") {
        assert!(
            began.elapsed() < PATIENCE,
            "{:?} {}",
            newer.trouble(),
            revision()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn what_takes_something_away_shuts_older_gates_out() {
    let (_, settings) = database();
    drop(Store::open_knowing(later(2), &settings).unwrap());
    let error = refusal(&settings);
    assert!(matches!(
        error,
        OpenError::NewerSchema { found: 2, known: 1 }
    ));
}

#[test]
fn a_database_that_cannot_hold_every_text_is_refused() {
    let name = format!("odd_{}", Server::shared().create_database());
    let odd = format!("create database {name} owner gate encoding 'LATIN1' template template0");
    Server::shared().query("postgres", &odd);
    let error = refusal(&settings(Server::shared().url(&name)));
    assert!(matches!(error, OpenError::Encoding(encoding) if encoding == "LATIN1"));
}

#[test]
fn a_database_that_takes_no_writes_is_refused() {
    let (name, settings) = database();
    let read_only = format!("alter database {name} set default_transaction_read_only = on");
    Server::shared().query("postgres", &read_only);
    assert!(matches!(refusal(&settings), OpenError::ReadOnly(_)));
}

#[test]
fn what_the_role_may_not_do_is_told_at_once() {
    let (name, settings) = database();
    let taken = format!(
        "alter database {name} owner to admin; revoke all on database {name} from public;
        grant connect on database {name} to gate"
    );
    Server::shared().query("postgres", &taken);
    let error = refusal(&settings);
    assert!(matches!(&error, OpenError::Refused(text) if text.contains("permission denied")));
    let nowhere = super::tests::settings(Server::shared().url("nowhere"));
    assert!(matches!(refusal(&nowhere), OpenError::Refused(text) if text.contains("nowhere")));
}

#[test]
fn a_server_without_fsync_is_refused() {
    let server = Server::start(&[("fsync", "off")]);
    let error = refusal(&settings(server.url(&server.create_database())));
    assert!(matches!(error, OpenError::FsyncOff));
    assert!(error.to_string().contains("Set fsync = on"));
}

fn told(server: &Server, database: &str) -> String {
    let ask = "select generation, quarantine from tikigate.ledger";
    server.query(database, ask)
}

#[test]
fn a_standby_is_refused_and_one_that_took_over_is_not_believed() {
    let server = Server::start(&[]);
    let database = server.create_database();
    let store = Store::open(&settings(server.url(&database))).unwrap();
    assert_eq!(told(&server, &database), "0|");
    let standby = server.standby();
    assert!(matches!(
        refusal(&settings(standby.url(&database))),
        OpenError::ReadOnly(_)
    ));
    // Of several servers, the one that takes writes is found.
    let both = format!(
        "postgres://gate@127.0.0.1:{},127.0.0.1:{}/{database}",
        standby.port(),
        server.port()
    );
    drop(Store::open(&settings(both)).unwrap());

    standby.promote();
    let promoted = Store::open(&settings(standby.url(&database))).unwrap();
    assert_eq!(
        told(&standby, &database),
        "1|the database server went from timeline 1 to 2: a standby was promoted, or a backup restored"
    );
    // Noticed once.
    drop(Store::open(&settings(standby.url(&database))).unwrap());
    assert!(told(&standby, &database).starts_with("1|"));
    drop((store, promoted));
}

#[tokio::test]
async fn a_commit_that_no_standby_confirms_is_bounded_and_fails() {
    let server = Server::start(&[]);
    let database = server.create_database();
    let store = Store::open(&settings(server.url(&database))).unwrap();
    let note = async |session: &mut Session| {
        session.begin().await?;
        let note = "insert into tikigate.ledger_event (what, reason) values ('test', 'test')";
        session.run(note).await?;
        session.commit().await
    };
    store.run(note).await.unwrap();

    server.wait_for_standby("nobody");
    let began = std::time::Instant::now();
    let fault = store.run(note).await.unwrap_err();
    assert!(matches!(fault, Fault::Unconfirmed(_)), "{fault}");
    assert!(began.elapsed() < Duration::from_secs(9));
    // The connection is set aside, so that what comes now is refused at once.
    let began = std::time::Instant::now();
    let fault = store.run(note).await.unwrap_err();
    assert!(matches!(fault, Fault::Unavailable(_)), "{fault}");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(store.trouble().unwrap().contains("synchronous standby"));

    // Somebody cancels the wait: the server says that the commit was made, and warns.
    let waiting = "from pg_stat_activity where wait_event = 'SyncRep'";
    assert_eq!(
        server.query("postgres", &format!("select count(*) {waiting}")),
        "1"
    );
    server.query(
        "postgres",
        &format!("select pg_cancel_backend(pid) {waiting}"),
    );
    until(async || store.trouble().is_none()).await;
    let cancelled = store.run(note);
    let cancelling = async {
        until(async || server.query("postgres", &format!("select count(*) {waiting}")) == "1")
            .await;
        server.query(
            "postgres",
            &format!("select pg_cancel_backend(pid) {waiting}"),
        );
    };
    let (cancelled, ()) = tokio::join!(cancelled, cancelling);
    let fault = cancelled.unwrap_err();
    assert!(
        matches!(&fault, Fault::Unconfirmed(text) if text.contains("not safe")),
        "{fault}"
    );

    server.wait_for_standby("");
    store.run(note).await.unwrap();
}

async fn until(holds: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(
            std::time::Instant::now() < deadline,
            "it never came to pass"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_went_is_found_again() {
    let mut server = Server::start(&[]);
    let database = server.create_database();
    let store = Store::open(&settings(server.url(&database))).unwrap();
    for signal in ["QUIT", "INT"] {
        server.end(signal);
        until(async || store.trouble().is_some()).await;
        let began = std::time::Instant::now();
        let fault = asked(&store, "select 'here'").await.unwrap_err();
        assert!(matches!(fault, Fault::Unavailable(_)), "{fault}");
        assert!(began.elapsed() < Duration::from_secs(1));
        server.begin();
        until(async || store.trouble().is_none()).await;
        assert_eq!(asked(&store, "select 'here'").await.unwrap(), "here");
    }
    // Nor is a start without it a failure.
    server.end("INT");
    let early = Store::open(&settings(server.url(&database))).unwrap();
    assert!(early.trouble().unwrap().contains("can't be reached"));
    server.begin();
    until(async || early.trouble().is_none()).await;
}

#[tokio::test]
async fn work_that_is_begun_goes_on_without_its_caller() {
    let (name, settings) = database();
    let store = Store::open(&settings).unwrap();
    let (begun, begins) = oneshot::channel();
    let work = store.run(async move |session: &mut Session| {
        session.begin().await?;
        session
            .run("create table tikigate.left_alone (n int)")
            .await?;
        let _ = begun.send(());
        session.run("select pg_sleep(0.2)").await?;
        session.commit().await
    });
    begins.await.unwrap();
    drop(work);
    let there = "select to_regclass('tikigate.left_alone') is not null";
    until(async || Server::shared().query(&name, there) == "t").await;
}

#[tokio::test]
async fn an_error_leaves_nothing_behind() {
    let (name, settings) = database();
    let store = Store::open(&settings).unwrap();
    let failing = store.run(async |session: &mut Session| {
        session.begin().await?;
        session.run("create table tikigate.half (n int)").await?;
        session.run("select 1 / 0").await
    });
    assert!(matches!(failing.await, Err(Fault::Failed(text)) if text.contains("division by zero")));
    assert_eq!(asked(&store, "select 'again'").await.unwrap(), "again");
    let there = "select to_regclass('tikigate.half') is null";
    assert_eq!(Server::shared().query(&name, there), "t");
}

#[tokio::test]
async fn the_server_is_who_its_certificate_says() {
    let certificates = tempfile::tempdir().unwrap();
    let path = |name: &str| certificates.path().join(name);
    for (ca, host) in [("ca", "localhost"), ("other", "localhost")] {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={ca} \
             -keyout {0}.key -out {0}.crt",
            path(ca).display()
        ));
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={host} \
             -addext subjectAltName=DNS:{host} -keyout {0}.server.key -out {0}.csr",
            path(ca).display()
        ));
        openssl(&format!(
            "x509 -req -in {0}.csr -CA {0}.crt -CAkey {0}.key -days 2 -copy_extensions copy -out {0}.server.crt",
            path(ca).display()
        ));
    }
    let server = Server::start(&[]);
    server.take_in(&path("ca.server.crt"), "server.crt");
    server.take_in(&path("ca.server.key"), "server.key");
    server.reconfigure(&[("ssl", "on")]);
    let database = server.create_database();
    let url = |host: &str| {
        format!(
            "postgres://gate@{host}:{}/{database}?sslmode=verify-full",
            server.port()
        )
    };
    let with = |host: &str, ca: &str| PostgresStore {
        ca: Some(path(ca)),
        ..settings(url(host))
    };
    let store = Store::open(&with("localhost", "ca.crt")).unwrap();
    let secured = "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(asked(&store, secured).await.unwrap(), "true");
    for (host, ca, why) in [
        ("localhost", "other.crt", "UnknownIssuer"),
        ("127.0.0.1", "ca.crt", "not valid for name"),
    ] {
        let error = Store::open(&with(host, ca)).err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(why), "{text}");
    }
    let absent = refusal(&with("localhost", "absent.crt"));
    assert!(matches!(absent, OpenError::Certificates(_)));
    let empty = refusal(&with("localhost", "ca.key"));
    assert!(matches!(empty, OpenError::Certificates(_)));
}

fn openssl(arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}\n{said}");
}
