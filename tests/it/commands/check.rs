//! `tikigate check` on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::{command, run, setup, tikigate};
use crate::support::gate::{OTHER_SECRET, SECRET, usual};
use crate::support::gate_process::Setup;
use crate::support::samples::{self, Sample};

/// Each line with a mistake is marked by the code of its problem.
const TEN_MISTAKES: &str = r#"
[server]
listen = "0.0.0.0"                                # bad_address
drian_within = "75s"                              # unknown_key
body_timeout = "soon"                             # bad_duration
[upstreams.legacy]
url = "ftp://127.0.0.1:9000"                      # bad_url
answer_within = "15s"                             # too_slow
[[clients]]
id = "wallet-key"
name = "wallet"
environment = "prod"                              # unknown_word
secrets = [{ name = "now", file = "nowhere" }]    # unreadable_secret
[[routes]]
name = "refund"
path = "tiki/refund"                              # bad_path
method = "POST"
payload = "refund"
clients = ["walet"]                               # unknown_client
[routes.idempotency]
keep = "1d"                                       # too_short
[ledger]
store = "memory"
allow_volatile = true
"#;

#[test]
fn ten_mistakes_are_ten_problems_with_their_lines() {
    let setup = Setup::new(TEN_MISTAKES);
    let told = run(&mut setup.command("check")).failed(78);
    let config = setup.config_path();
    let start = format!("{}:", config.display());
    let found: Vec<usize> = told
        .lines()
        .filter_map(|line| {
            let (place, rest) = line.strip_prefix(&start)?.split_once(": ")?;
            rest.starts_with("error[")
                .then(|| place.split(':').next().unwrap().parse().unwrap())
        })
        .collect();
    let marked: Vec<usize> = (1..)
        .zip(TEN_MISTAKES.lines())
        .filter(|(_, line)| line.contains(" # "))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(marked.len(), 10);
    assert_eq!(found, marked, "{told}");
    assert!(told.contains("did you mean `drain_within`?"), "{told}");
    assert!(
        told.contains("can't be used; errors: 10, warnings: 0"),
        "{told}"
    );
    // The gate itself says the same and does not start.
    let served = run(&mut setup.command("serve")).failed(78);
    assert_eq!(
        served
            .lines()
            .filter(|line| line.starts_with(&start))
            .count(),
        10,
        "{served}"
    );
}

#[test]
fn problems_are_json_on_demand() {
    let setup = Setup::new(TEN_MISTAKES);
    let told = run(&mut command(&setup, &["check", "--format", "json"])).failed(78);
    let report: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["settings"], Value::Null);
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 10);
    for problem in problems {
        assert_eq!(problem["severity"], "error");
        for (field, is_there) in [
            ("line", problem["line"].is_u64()),
            ("column", problem["column"].is_u64()),
            ("code", problem["code"].is_string()),
            ("key", problem["key"].is_string()),
            ("message", problem["message"].is_string()),
        ] {
            assert!(is_there, "{field} is missing: {problem}");
        }
    }
}

#[test]
fn a_good_configuration_shows_what_is_in_force_and_no_secret() {
    let setup = setup(&usual("http://127.0.0.1:9000"))
        .environment("TIKIGATE__SERVER__MAX_CONNECTIONS", "77");
    let text = run(&mut setup.command("check")).worked();
    assert!(
        text.contains("can be used; errors: 0, warnings: "),
        "{text}"
    );
    assert!(text.contains("max_connections = 77"), "{text}");
    let json = run(&mut command(&setup, &["check", "--format", "json"])).worked();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(report["settings"]["server"]["max_connections"], 77);
    for hidden in [SECRET, OTHER_SECRET] {
        assert!(!text.contains(hidden) && !json.contains(hidden), "{text}");
    }
}

#[test]
fn strict_takes_warnings_for_errors() {
    let setup = setup(&usual("http://127.0.0.1:9000"));
    let secret = setup.directory().join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let told = run(&mut setup.command("check")).worked();
    assert!(told.contains(": warning["), "{told}");
    let told = run(&mut command(&setup, &["check", "--strict"])).failed(78);
    assert!(told.contains("is refused for its warnings"), "{told}");
    let told = run(&mut command(
        &setup,
        &["check", "--strict", "--format", "json"],
    ))
    .failed(78);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["ok"], false);

    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let calm = fs::read_to_string(setup.config_path()).unwrap();
    fs::write(setup.config_path(), without_warnings(&calm)).unwrap();
    let told = run(&mut command(&setup, &["check", "--strict"])).worked();
    assert!(told.contains("errors: 0, warnings: 0"), "{told}");
}

/// Whatever the tests' usual configuration is warned of is set to its usual value.
fn without_warnings(usual: &str) -> String {
    usual
        .replace("drain_within = \"20s\"", "drain_within = \"75s\"")
        .replace("drain_delay = \"0s\"", "drain_delay = \"5s\"")
}

/// Somebody wrote a secret where its file's name belongs, or beside it.
#[test]
fn a_secret_in_the_configuration_is_never_repeated() {
    for line in [
        format!("secrets = [\"{SECRET}\"]"),
        format!("secrets = [{{ name = \"now\", secret = \"{SECRET}\" }}]"),
        format!("secrets = [{{ name = \"now\", value = \"{SECRET}\" }}]"),
        format!("secrets = \"{SECRET}\""),
        format!("secret = \"{SECRET}\""),
        format!("secrets = [{{ name = \"now\", file = \"{SECRET}\" }}]"),
    ] {
        let usual = usual("http://127.0.0.1:9000");
        let spoiled = usual.replacen(
            "secrets = [{ name = \"now\", file = \"secret\" }]",
            &line,
            1,
        );
        assert_ne!(spoiled, usual);
        let setup = setup(&spoiled);
        for more in [&["check"][..], &["check", "--format", "json"], &["serve"]] {
            let told = run(&mut command(&setup, more)).failed(78);
            assert!(!told.contains(SECRET), "{line}: {told}");
            assert!(
                told.contains("tikigate.toml") && told.contains("client"),
                "{told}"
            );
        }
    }
}

#[test]
fn every_sample_can_be_used() {
    let samples = samples::configurations();
    assert!(
        samples.iter().any(|(name, _)| name == "demo.toml"),
        "{samples:?}"
    );
    for (name, text) in samples {
        let sample = Sample::new(&text);
        let told = run(&mut sample.command(&["check"])).worked();
        assert!(
            told.contains("can be used; errors: 0, "),
            "config/{name}: {told}"
        );
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let setup = Setup::new("[server]\nlisten = \n");
    let told = run(&mut setup.command("check")).failed(78);
    assert!(told.contains("tikigate.toml:2:"), "{told}");
    let told = run(&mut tikigate(&["check", "--config", "/nonexistent.toml"])).failed(78);
    assert!(
        told.contains("/nonexistent.toml: error[unreadable]"),
        "{told}"
    );
}
