//! The image's root file system, mounted as a container's is: read-only, with volumes, and a binary in it that runs
//! as 65532 without a single privilege.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::output;
use crate::support::gate::{OTHER_SECRET, SECRET};
use crate::support::gate_process::{GateProcess, Setup};

/// The user and the group that the gate runs as.
pub(super) const NONROOT: u32 = 65532;

/// The directory of the ledger.
pub(super) const LEDGER: &str = "var/lib/tikigate";
/// The directory of its watermark.
pub(super) const MARK: &str = "var/lib/tikigate-mark";

/// A mounted root. Only for a process that is [apart](super::apart): nothing is unmounted.
pub(super) struct Root {
    path: PathBuf,
    /// Where the volumes' files are, on a real disk; whoever set this process apart removes it.
    volumes: PathBuf,
    setup: Arc<Setup>,
}

fn mount(arguments: &[&str]) {
    output(Command::new("mount").args(arguments));
}

impl Root {
    /// Unpacks the layer and mounts what an engine mounts, with this configuration and its secrets at
    /// `/etc/tikigate`. It can be written by root until [`Root::seal`].
    pub(super) fn new(layer: &Path, config: &str) -> Self {
        let volumes = tempfile::tempdir().unwrap().keep();
        // Others may pass through, as through a kubelet's directories.
        fs::set_permissions(&volumes, Permissions::from_mode(0o755)).unwrap();
        let path = volumes.join("root");
        fs::create_dir(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", "mode=0755", "root", text(&path)]);
        output(
            Command::new("tar")
                .args(["--extract", "--same-owner", "--same-permissions"])
                .args(["--numeric-owner", "--directory", text(&path)])
                .args(["--file", text(layer)]),
        );
        let setup = Setup::new(config)
            .file("secret", SECRET.as_bytes())
            .file("other-secret", OTHER_SECRET.as_bytes());
        let root = Self {
            path,
            volumes,
            setup: Arc::new(setup),
        };
        root.devices();
        mount(&["-t", "proc", "proc", text(&root.at("proc"))]);
        root.configuration();
        root
    }

    /// With both volumes, empty and the gate's own.
    pub(super) fn with_volumes(layer: &Path, config: &str) -> Self {
        let root = Self::new(layer, config);
        root.volume(LEDGER, NONROOT);
        root.volume(MARK, NONROOT);
        root.seal();
        root
    }

    /// A path in the root, from outside.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    /// From here on nobody can write into it, but into its volumes.
    pub(super) fn seal(&self) {
        mount(&["-o", "remount,ro,nosuid,nodev", text(&self.path)]);
    }

    /// Mounts a directory of the disk, which belongs to this user, over one of the root's.
    pub(super) fn volume(&self, place: &str, owner: u32) {
        let source = self.volumes.join(place.replace('/', "-"));
        fs::create_dir(&source).unwrap();
        fs::set_permissions(&source, Permissions::from_mode(0o700)).unwrap();
        chown(&source, Some(owner), Some(owner)).unwrap();
        mount(&["--bind", text(&source), text(&self.at(place))]);
    }

    /// Mounts a /tmp in memory.
    pub(super) fn mount_tmp(&self) {
        let options = "mode=1777,size=1m";
        mount(&["-t", "tmpfs", "-o", options, "tmp", text(&self.at("tmp"))]);
    }

    /// Mounts a file with this text over one of the root's, as engines do with `/etc/hosts`.
    pub(super) fn file(&self, place: &str, content: &str) {
        let source = self.volumes.join(place.replace('/', "-"));
        fs::write(&source, content).unwrap();
        fs::set_permissions(&source, Permissions::from_mode(0o644)).unwrap();
        mount(&["--bind", text(&source), text(&self.at(place))]);
    }

    /// The binary with these arguments: in the root, as 65532, with an empty environment and nothing to rise by.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--clear-groups", "--no-new-privs", "--"]);
        let user = format!("--userspec={NONROOT}:{NONROOT}");
        command.args(["/usr/sbin/chroot", &user, "--groups=", text(&self.path)]);
        command.arg("/usr/local/bin/tikigate").args(arguments);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// The gate, ready.
    #[track_caller]
    pub(super) fn start(&self) -> GateProcess {
        GateProcess::launch(self.command(&["serve"]), Arc::clone(&self.setup))
            .unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// A small /dev, as engines make it.
    fn devices(&self) {
        let dev = self.at("dev");
        mount(&["-t", "tmpfs", "-o", "mode=0755", "dev", text(&dev)]);
        for device in ["null", "zero", "full", "random", "urandom"] {
            let place = dev.join(device);
            fs::write(&place, "").unwrap();
            mount(&["--bind", &format!("/dev/{device}"), text(&place)]);
        }
    }

    /// The set-up's directory is mounted read-only; its files are root's and readable for the gate's group, as a
    /// mounted Secret with `fsGroup` has them.
    fn configuration(&self) {
        let directory = self.setup.directory();
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            chown(&path, Some(0), Some(NONROOT)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        }
        let place = self.at("etc/tikigate");
        mount(&["--bind", text(directory), text(&place)]);
        mount(&["-o", "remount,bind,ro", text(&place)]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A configuration for the image: its ports, its ledger on its volumes.
pub(super) fn config(backend: &str) -> String {
    // A test's disk may be a container's.
    const LEDGER: &str = "store = \"sqlite\"\npath = \"/var/lib/tikigate/tikigate.db\"\n\
                          watermark = \"/var/lib/tikigate-mark/tikigate.mark\"\nallow_unsafe_filesystem = true\n";
    crate::support::gate::changed(
        backend,
        &[
            ("store = \"memory\"\nallow_volatile = true\n", LEDGER),
            (
                "[server]\nlisten = \"127.0.0.1:0\"",
                "[server]\nlisten = \"127.0.0.1:8080\"",
            ),
            (
                "[admin]\nlisten = \"127.0.0.1:0\"",
                "[admin]\nlisten = \"127.0.0.1:9901\"",
            ),
        ],
    )
}
