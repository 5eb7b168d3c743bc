//! Secrets come from elsewhere, whole, and are never shown.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::super::{Loaded, Problem, effective};
use super::{
    GOOD, SECRET, directory, good_but, load, load_in, only, only_error, table_with, told, write,
};

const SECRET_LINE: &str = "secrets = [{ name = \"now\", file = \"secret\" }]";

fn with_content(content: &[u8]) -> Result<Loaded, Vec<Problem>> {
    let directory = directory();
    write(directory.path(), "secret", content);
    // The token is what shows the bytes that were read.
    let text = format!("{GOOD}[admin]\ntokens = [{{ name = \"linh\", file = \"secret\" }}]\n");
    load_in(directory.path(), &text, &[])
}

fn read_token(content: &[u8]) -> Vec<u8> {
    let loaded = with_content(content).unwrap_or_else(|problems| panic!("{}", told(&problems)));
    loaded.settings.admin.tokens[0].token.expose().to_vec()
}

#[test]
fn exactly_one_line_end_is_taken_off() {
    for content in [
        "0123456789abcdef",
        "0123456789abcdef\n",
        "0123456789abcdef\r\n",
    ] {
        assert_eq!(read_token(content.as_bytes()), b"0123456789abcdef");
    }
    for content in [
        "",
        "\n",
        "\r\n",
        "x\n\n",
        "x\r",
        "x ",
        " x",
        "\tx",
        "x\t\n",
        "x\r\n\r\n",
        "\u{feff}x",
        "x\0",
    ] {
        let problems = with_content(content.as_bytes()).unwrap_err();
        assert_eq!(problems.len(), 2, "{content:?}");
        assert!(problems.iter().all(|problem| problem.code == "bad_secret"));
    }
}

#[test]
fn a_file_that_everybody_can_read_is_warned_about() {
    let directory = directory();
    let set = |mode| {
        let path = directory.path().join("secret");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        load_in(directory.path(), GOOD, &[]).unwrap().warnings
    };
    only(
        set(0o644),
        "readable_secret",
        "clients.wallet.secrets.now.file",
    );
    assert_eq!(set(0o440), []);
}

#[test]
fn files_that_are_no_secrets_are_refused() {
    let directory = directory();
    write(directory.path(), "secret", &vec![b'x'; 64 * 1024 + 1]);
    let large = load_in(directory.path(), GOOD, &[]).unwrap_err();
    only(
        large,
        "unreadable_secret",
        "clients.wallet.secrets.now.file",
    );
    for file in ["/dev/zero", ".", "absent"] {
        let text = good_but("file = \"secret\"", &format!("file = \"{file}\""));
        only_error(
            &text,
            "unreadable_secret",
            "clients.wallet.secrets.now.file",
        );
    }
}

#[test]
fn the_environment_holds_secrets_too() {
    let text = good_but("file = \"secret\"", "env = \"WALLET_SECRET\"");
    let directory = directory();
    let load = |value: &str| load_in(directory.path(), &text, &[("WALLET_SECRET", value)]);
    assert!(load("fake\n").is_ok());
    let key = "clients.wallet.secrets.now.env";
    only(load(" fake").unwrap_err(), "bad_secret", key);
    only(load("").unwrap_err(), "bad_secret", key);
    only_error(&text, "unreadable_secret", key);
}

#[test]
fn a_secret_has_one_source_and_a_name() {
    let key = "clients.wallet.secrets.now";
    let entry = |entry: &str| good_but(SECRET_LINE, &format!("secrets = [{entry}]"));
    only_error(
        &entry("{ name = \"now\", file = \"secret\", env = \"X\" }"),
        "bad_secret",
        key,
    );
    only_error(&entry("{ name = \"now\" }"), "missing", key);
    only_error(
        &entry("{ file = \"secret\" }"),
        "missing",
        "clients.wallet.secrets[0].name",
    );
    only_error(&entry(""), "empty", "clients.wallet.secrets");
    only_error(
        &good_but(SECRET_LINE, ""),
        "missing",
        "clients.wallet.secrets",
    );
    let twice = "{ name = \"now\", file = \"secret\" }, { name = \"now\", file = \"other\" }";
    only_error(
        &entry(twice),
        "duplicate",
        "clients.wallet.secrets.now.name",
    );
    let same = "{ name = \"a\", file = \"secret\" }, { name = \"b\", file = \"secret\" }";
    let loaded = load(&entry(same)).unwrap();
    only(
        loaded.warnings,
        "same_secret",
        "clients.wallet.secrets.b.file",
    );
}

#[test]
fn a_secret_in_the_text_is_refused_and_not_repeated() {
    let places = [
        good_but(
            SECRET_LINE,
            &format!("secret = \"{SECRET}\"\n{SECRET_LINE}"),
        ),
        good_but(SECRET_LINE, &format!("secrets = [\"{SECRET}\"]")),
        good_but(
            "file = \"secret\"",
            &format!("file = \"secret\", value = \"{SECRET}\""),
        ),
        table_with(
            "[upstreams.legacy]",
            &format!("set_headers = {{ X-Gate-Key = \"{SECRET}\" }}"),
        ),
        table_with(
            "[upstreams.legacy]",
            &format!("set_headers = {{ Authorization = \"{SECRET}\" }}"),
        ),
        format!(
            "{GOOD}[admin]\ntokens = [{{ name = \"linh\", token = \"{SECRET}\", file = \"secret\" }}]\n"
        ),
        format!("{GOOD}[admin]\ntoken = \"{SECRET}\"\n"),
        format!("{GOOD}[admin]\ntokens = [\"{SECRET}\"]\n"),
    ];
    for text in places {
        let problems = load(&text).unwrap_err();
        assert!(
            problems
                .iter()
                .any(|problem| problem.code == "inline_secret"),
            "{}",
            told(&problems)
        );
        silent(&problems);
    }
    let random = table_with(
        "[upstreams.legacy]",
        "set_headers = { X-A = \"9f8e7d6c5b4a39281706f5e4\" }",
    );
    let warnings = load(&random).unwrap().warnings;
    assert!(!told(&warnings).contains("9f8e7d6c5b4a"));
    only(
        warnings,
        "inline_secret",
        "upstreams.legacy.set_headers.X-A",
    );
    let plain = table_with(
        "[upstreams.legacy]",
        "set_headers = { X-Source = \"tikigate\" }",
    );
    assert_eq!(load(&plain).unwrap().warnings, []);
}

#[test]
fn a_secret_in_a_wrong_place_is_not_repeated() {
    for text in [
        good_but("file = \"secret\"", &format!("file = \"{SECRET}\"")),
        good_but("file = \"secret\"", &format!("env = \"{SECRET}\"")),
        good_but(
            "http://127.0.0.1:9000",
            &format!("http://user:{SECRET}@host"),
        ),
        good_but("\"memory\"", &format!("\"{SECRET}\"")),
        table_with("[server]", &format!("max_connections = \"{SECRET}\"")),
        table_with("[server]", &format!("header_timeout = \"{SECRET}\"")),
        table_with("[server]", &format!("head_limit = \"{SECRET}\"")),
        table_with("[server]", &format!("trusted_proxies = [\"{SECRET}\"]")),
        table_with("[ledger]", &format!("url = \"postgres://u:{SECRET}@host\"")),
        good_but(SECRET_LINE, &format!("secret = \"{SECRET}")),
        good_but(SECRET_LINE, &format!("secret = {SECRET}")),
        good_but(
            SECRET_LINE,
            &format!("{SECRET_LINE}\nsecrets = \"{SECRET}\""),
        ),
        good_but("\"/ipn\"", &format!("\"{SECRET}\"")),
    ] {
        silent(&load(&text).unwrap_err());
    }
}

#[test]
fn what_was_read_is_not_shown() {
    let text = table_with(
        "[upstreams.legacy]",
        "set_headers = { X-Gate-Key = { file = \"secret\" } }",
    );
    let text = format!("{text}[admin]\ntokens = [{{ name = \"linh\", file = \"secret\" }}]\n");
    let loaded = load(&text).unwrap();
    assert_eq!(
        loaded.settings.upstreams[0].set_headers[0].1.expose(),
        SECRET.as_bytes()
    );
    assert!(!format!("{loaded:?}").contains(SECRET));
    assert!(
        !format!("{loaded:#?}").contains("115, 51, 99"),
        "not as numbers either"
    );
    let shown = effective(&loaded.settings).to_string();
    assert!(!shown.contains(SECRET));
    assert!(shown.contains("[redacted]"));
}

#[test]
fn tokens_and_header_values_can_travel_in_a_header() {
    let problems = with_content(b"with space inside").unwrap_err();
    only(problems, "bad_secret", "admin.tokens.linh.file");
    let short = with_content(b"short").unwrap().warnings;
    only(short, "short_token", "admin.tokens.linh.file");
    let directory = directory();
    write(directory.path(), "other", b"two\nlines");
    let text = table_with(
        "[upstreams.legacy]",
        "set_headers = { X-K = { file = \"other\" } }",
    );
    let problems = load_in(directory.path(), &text, &[]).unwrap_err();
    only(
        problems,
        "bad_header",
        "upstreams.legacy.set_headers.X-K.file",
    );
}

#[track_caller]
fn silent(problems: &[Problem]) {
    assert!(!problems.is_empty());
    for text in [
        told(problems),
        format!("{problems:?}"),
        serde_json::to_string(problems).unwrap(),
    ] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

proptest! {
    /// Whatever is written, it is read or refused, and never a panic.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = load(&text);
    }

    /// The same with text that is nearly right: one line of the good one is replaced.
    #[test]
    fn a_damaged_line_is_read_or_refused(line in 0usize..28, put in "[a-z_]{1,12}( = )?[\\[\\]{}\"0-9a-z:/.=, -]{0,30}") {
        let lines: Vec<&str> = GOOD.lines().collect();
        let mut lines = lines;
        let at = line % lines.len();
        lines[at] = &put;
        let _ = load(&lines.join("\n"));
    }

    /// And with overrides from the environment.
    #[test]
    fn any_variable_is_read_or_refused(
        name in "(SERVER|ROUTES|CLIENTS|LEDGER|UPSTREAMS|X)(__[A-Z0-9_]{0,12}){0,3}",
        value in "\\PC{0,40}",
    ) {
        let _ = load_in(directory().path(), GOOD, &[(&format!("TIKIGATE__{name}"), &value)]);
    }
}
