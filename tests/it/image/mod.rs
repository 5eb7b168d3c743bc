//! The image without an engine: its root file system as the scripts of `deploy/image/` make it, and the static
//! binary in it, run the way an engine or a kubelet would run it.
//!
//! The release build takes some minutes once, in `target/image`; later runs find it there.
//! `TIKIGATE_REPRODUCE=1` builds it a second time elsewhere and compares, `TIKIGATE_BUILDAH=1` builds the image by its
//! Dockerfile.

mod advisories;
mod contents;
mod dockerfile;
mod names;
mod parts;
mod reproduced;
mod root;
mod running;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::support::samples;

/// Set in a test that runs for the second time, apart from the machine: where the layer is.
const APART: &str = "TIKIGATE_TEST_LAYER";

/// A script or program of the repository, run in it; what the caller's environment says about a gate is left out.
fn script(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(samples::root());
    command
}

/// Standard output of a command that must work.
#[track_caller]
fn output(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {said}");
    String::from_utf8(stdout).unwrap()
}

/// The release binary of the image, built if something has changed.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = output(&mut script("deploy/image/build", &[]));
        PathBuf::from(path.trim_end())
    })
}

/// The root file system as an archive, made once.
fn layer() -> &'static Path {
    static LAYER: OnceLock<PathBuf> = OnceLock::new();
    LAYER.get_or_init(|| {
        binary();
        let path = samples::root().join("target/image/layer-of-tests.tar");
        output(&mut script("deploy/image/layer", &[path.to_str().unwrap()]));
        path
    })
}

/// Runs the test `name` of this module again in a process of its own, in namespaces of its own: there it may mount,
/// has a network with nothing but a loopback, and whatever it leaves behind goes with it. Says where the layer is if
/// this is that process; where it isn't, the test is done when this returns nothing.
///
/// # Panics
/// If the test failed there, or was not run at all.
#[track_caller]
fn apart(name: &str) -> Option<PathBuf> {
    if let Some(layer) = std::env::var_os(APART) {
        output(Command::new("ip").args(["link", "set", "lo", "up"]));
        return Some(layer.into());
    }
    let name = format!("image::{name}");
    // What is mounted goes with its namespace; the places that it was mounted on are swept up here.
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = as_root(&["--mount", "--net", "--ipc", "--pid", "--mount-proc"]);
    command.args(["--fork", "--kill-child"]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture"]);
    command.env(APART, layer()).env("TMPDIR", place.path());
    let said = command.output().unwrap();
    output(as_root(&[]).args(["rm", "-rf"]).arg(place.path()));
    let out = String::from_utf8_lossy(&said.stdout);
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(
        said.status.success() && out.contains("test result: ok. 1 passed"),
        "{name}, apart: {}\n{out}\n{err}",
        said.status
    );
    None
}

/// What runs the rest of its arguments as root, or as what counts for it in a namespace of users. That needs further
/// numbers, which /etc/subuid gives to people.
fn as_root(namespaces: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(namespaces);
    if !rustix::process::geteuid().is_root() {
        command.args(["--map-root-user", "--map-auto"]);
    }
    command
}
