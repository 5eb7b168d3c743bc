//! What keeps `tikigate serve` from starting: a clear sentence and the right exit code.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::{run, serve_as_nobody, setup, tikigate, token_file};
use crate::support::gate::{SECRET, usual};
use crate::support::gate_process::Setup;

/// Nobody is called in these tests.
const BACKEND: &str = "http://127.0.0.1:9";

/// What `tikigate serve` says when it ends with this code.
#[track_caller]
fn refusal(command: &mut Command, code: i32) -> String {
    let told = run(command).failed(code);
    assert!(
        !told.contains("panicked") && !told.contains(SECRET),
        "{told}"
    );
    told
}

#[track_caller]
fn assert_says(told: &str, words: &[&str]) {
    for word in words {
        assert!(told.contains(word), "{word:?} is missing in: {told}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for variable in ["TIKIGATE__SERVER__LISTEN", "TIKIGATE__ADMIN__LISTEN"] {
        let setup = setup(&usual(BACKEND)).environment(variable, &address);
        let told = refusal(&mut setup.command("serve"), 1);
        let sentence = format!("cannot listen on {address}: another process is listening there");
        assert_says(&told, &["tikigate serve: ", &sentence]);
    }
}

#[test]
fn an_address_of_another_machine_is_named() {
    let setup = setup(&usual(BACKEND)).environment("TIKIGATE__SERVER__LISTEN", "192.0.2.1:8080");
    assert_says(
        &refusal(&mut setup.command("serve"), 1),
        &["cannot listen on 192.0.2.1:8080: "],
    );
}

/// What the right is that an ordinary user lacks. Skipped where nobody else can be become.
#[test]
fn a_port_or_a_directory_that_is_not_for_this_user_is_named_with_what_to_do() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    // In containers every port may be open to everybody.
    let open = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if open.trim() == "1024" {
        let setup = setup(&usual(BACKEND)).environment("TIKIGATE__SERVER__LISTEN", "127.0.0.1:81");
        let told = refusal(&mut serve_as_nobody(&setup), 1);
        assert_says(
            &told,
            &["cannot listen on 127.0.0.1:81: ", "CAP_NET_BIND_SERVICE"],
        );
    }
    let closed = tempfile::tempdir().unwrap();
    let path = format!("unix:{}/gate.sock", closed.path().display());
    let setup = setup(&usual(BACKEND)).environment("TIKIGATE__SERVER__LISTEN", &path);
    let told = refusal(&mut serve_as_nobody(&setup), 1);
    assert_says(
        &told,
        &[
            &format!("cannot listen on {path}: "),
            "the gate's user needs the right to write to the directory",
        ],
    );
}

#[test]
fn a_socket_file_that_cannot_be_made_is_named() {
    let set_up = setup(&usual(BACKEND));
    let directory = set_up.directory().display().to_string();
    let config = format!("{directory}/tikigate.toml");
    for (path, words) in [
        (config.clone(), "a file that is not a socket is in the way"),
        (
            format!("{directory}/nowhere/gate.sock"),
            "No such file or directory",
        ),
    ] {
        let mut serve = set_up.command("serve");
        serve.env("TIKIGATE__SERVER__LISTEN", format!("unix:{path}"));
        let told = refusal(&mut serve, 1);
        assert_says(&told, &[&format!("cannot listen on unix:{path}: "), words]);
    }
    assert!(
        fs::read_to_string(config).unwrap().contains("[server]"),
        "the file was touched"
    );
}

#[test]
fn a_configuration_that_is_not_there_is_named_with_where_it_was_looked_for() {
    let mut by_flag = tikigate(&["serve", "--config", "/nonexistent/gate.toml"]);
    let mut by_variable = tikigate(&["serve"]);
    by_variable.env("TIKIGATE_CONFIG", "/nonexistent/gate.toml");
    for command in [&mut by_flag, &mut by_variable] {
        let told = refusal(command, 78);
        assert_says(
            &told,
            &[
                "/nonexistent/gate.toml: ",
                "No such file",
                "--config",
                "TIKIGATE_CONFIG",
            ],
        );
    }
}

#[test]
fn a_secret_that_cannot_be_read_is_named_by_line() {
    let line = line_of(&usual(BACKEND), r#"file = "secret""#);
    let missing = Setup::new(&usual(BACKEND)).file("other-secret", b"x");
    let a_directory = Setup::new(&usual(BACKEND)).file("other-secret", b"x");
    fs::create_dir(a_directory.directory().join("secret")).unwrap();
    let empty = Setup::new(&usual(BACKEND))
        .file("other-secret", b"x")
        .file("secret", b"\n");
    let edges = Setup::new(&usual(BACKEND))
        .file("other-secret", b"x")
        .file("secret", format!(" {SECRET}\n").as_bytes());
    for setup in [missing, a_directory, empty, edges] {
        // The file's name is not repeated: people put the secret itself where the name belongs.
        let told = refusal(&mut setup.command("serve"), 78);
        assert_says(
            &told,
            &[
                &format!("tikigate.toml:{line}:"),
                "error[",
                "clients.wallet.secrets.now",
            ],
        );
    }
}

fn line_of(text: &str, part: &str) -> usize {
    text.lines().position(|line| line.contains(part)).unwrap() + 1
}

#[test]
fn a_bad_override_is_named_by_its_variable() {
    for (variable, value, words) in [
        (
            "TIKIGATE__SERVER__LISTEN",
            "nonsense",
            "neither an address with a port",
        ),
        ("TIKIGATE__SERVER__LISTN", "127.0.0.1:0", "listen"),
    ] {
        let setup = setup(&usual(BACKEND)).environment(variable, value);
        let told = refusal(&mut setup.command("serve"), 78);
        assert_says(&told, &[&format!("{variable}: error["), words]);
    }
}

#[test]
fn an_admin_token_that_cannot_be_made_is_named_with_its_place() {
    // The configuration comes from a place that holds no other files, as `--config <(...)` does.
    let set_up = setup(&usual(BACKEND));
    let absolute = |name: &str| {
        let path = set_up.directory().join(name);
        (
            format!("file = \"{name}\""),
            format!("file = \"{}\"", path.display()),
        )
    };
    let mut text = usual(BACKEND);
    for (relative, absolute) in [absolute("secret"), absolute("other-secret")] {
        text = text.replace(&relative, &absolute);
    }
    let config = set_up.directory().join("absolute.toml");
    fs::write(&config, text).unwrap();
    let mut serve = Command::new("sh");
    serve.args(["-c", "exec \"$0\" serve --config /dev/fd/3 3<\"$1\""]);
    serve.arg(env!("CARGO_BIN_EXE_tikigate")).arg(&config);
    super::leave_out_settings(&mut serve);
    let told = refusal(&mut serve, 1);
    assert_says(
        &told,
        &[
            "admin token /dev/fd/admin.token: ",
            "No such file or directory",
        ],
    );
    assert!(
        !told.contains("admin token: admin token"),
        "it is said twice: {told}"
    );
}

#[test]
fn an_admin_token_that_others_can_read_is_refused() {
    let setup = setup(&usual(BACKEND));
    let token = token_file(setup.directory());
    fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let told = refusal(&mut setup.command("serve"), 1);
    assert_says(
        &told,
        &[&token.display().to_string(), "0644", "make it 0600"],
    );
    assert!(!told.contains("0123456789abcdef"), "{told}");
}
