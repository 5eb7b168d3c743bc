//! What is in the layer: whose it is, who may write it, how much it is, and that no trace of the machine is in it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use super::root::{LEDGER, MARK, NONROOT, Root, config};
use super::{apart, binary, layer, output};
use crate::support::samples;

/// Of the whole root file system, and of the layer as a registry keeps it.
const LIMIT: u64 = 20 * 1024 * 1024;

/// An entry of the archive, as `tar --list --verbose` shows it.
#[derive(Debug)]
struct Entry {
    mode: String,
    owner: String,
    size: u64,
}

/// Where a text begins in the binary.
fn find(bytes: &[u8], text: &str) -> Option<usize> {
    memchr::memmem::find(bytes, text.as_bytes())
}

fn entries() -> BTreeMap<String, Entry> {
    let list = output(
        Command::new("tar")
            .args([
                "--list",
                "--verbose",
                "--numeric-owner",
                "--full-time",
                "--file",
            ])
            .arg(layer()),
    );
    let mut found = BTreeMap::new();
    for line in list.lines() {
        // Mode, owner, size, day, time, name.
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap().to_owned();
        let (mode, owner, size, day, _time, name) =
            (word(), word(), word(), word(), word(), word());
        assert!(
            day == "1970-01-01" || std::env::var_os("SOURCE_DATE_EPOCH").is_some(),
            "{line}"
        );
        let name = name
            .trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned();
        let size = size.parse().unwrap();
        let double = found.insert(name, Entry { mode, owner, size });
        assert!(double.is_none(), "twice in the archive: {line}");
    }
    found
}

#[test]
fn everything_is_root_s_but_the_volumes() {
    let entries = entries();
    let volumes = [LEDGER, MARK];
    for (name, entry) in &entries {
        let is_volume = volumes.contains(&name.as_str());
        let (owner, mode) = if is_volume {
            (format!("{NONROOT}/{NONROOT}"), "drwx------")
        } else if entry.mode.starts_with('d') {
            ("0/0".to_owned(), "drwxr-xr-x")
        } else if entry.mode.starts_with('l') {
            ("0/0".to_owned(), "lrwxrwxrwx")
        } else if name == "usr/local/bin/tikigate" {
            ("0/0".to_owned(), "-rwxr-xr-x")
        } else {
            ("0/0".to_owned(), "-rw-r--r--")
        };
        // Equality leaves no room for a setuid bit, a sticky one or a hard link either.
        let mode_is_right = entry.mode == mode || entry.mode == mode.replacen('-', "h", 1);
        assert!(entry.owner == owner && mode_is_right, "{name}: {entry:?}");
    }
    for needed in [
        "usr/local/bin/tikigate",
        "etc/ssl/certs/ca-certificates.crt",
        "etc/nsswitch.conf",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/tikigate",
        "usr/share/zoneinfo/Asia/Ho_Chi_Minh",
        "usr/share/doc/tikigate/LICENSE",
        "usr/share/doc/tikigate/third-party-licences.txt",
        "usr/share/sbom/tikigate.cdx.json",
        "dev",
        "proc",
        "sys",
        "tmp",
        LEDGER,
        MARK,
    ] {
        assert!(entries.contains_key(needed), "{needed} is missing");
    }
    let executable: Vec<_> = entries
        .iter()
        .filter(|(_, entry)| entry.mode.starts_with('-') && entry.mode.contains('x'))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(executable, ["usr/local/bin/tikigate"], "no shell, no tools");
}

#[test]
fn the_gate_can_write_into_its_volumes_alone() {
    let Some(layer) = apart("contents::the_gate_can_write_into_its_volumes_alone") else {
        return;
    };
    // Not sealed: on a root that can be written, permissions alone have to do.
    let root = Root::new(&layer, &config("http://127.0.0.1:9"));
    let user = NONROOT.to_string();
    let find = |test: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]);
        // Links have no permissions; what is mounted is not the image's.
        command
            .arg("find")
            .arg(root.at(""))
            .args(["-xdev", "!", "-type", "l"]);
        let told = command.args(test).output().unwrap();
        let mut found: Vec<_> = String::from_utf8(told.stdout)
            .unwrap()
            .lines()
            .map(|line| {
                line.strip_prefix(root.at("").to_str().unwrap())
                    .unwrap()
                    .to_owned()
            })
            .map(|line| line.trim_start_matches('/').to_owned())
            .collect();
        found.sort();
        found
    };
    assert_eq!(find(&["-writable"]), [LEDGER, MARK]);
    assert!(find(&[]).len() > 100, "the search saw the root");
    assert_eq!(find(&["-perm", "/7000"]), [""; 0]);
}

#[test]
fn the_image_is_small() {
    let unpacked: u64 = entries().values().map(|entry| entry.size).sum();
    let packed = output(
        Command::new("sh")
            .args(["-c", "gzip -c \"$0\" | wc -c"])
            .arg(layer()),
    );
    let packed: u64 = packed.trim().parse().unwrap();
    println!("{unpacked} bytes, {packed} as a gzip layer");
    assert!(unpacked < LIMIT, "{unpacked} bytes");
    assert!(packed < LIMIT, "{packed} bytes as a gzip layer");
}

#[test]
fn authorities_are_the_distribution_s_and_no_machine_s() {
    let Some(layer) = apart("contents::authorities_are_the_distribution_s_and_no_machine_s") else {
        return;
    };
    let root = Root::new(&layer, &config("http://127.0.0.1:9"));
    let bundle = fs::read_to_string(root.at("etc/ssl/certs/ca-certificates.crt")).unwrap();
    let certificates = |text: &str| -> Vec<String> {
        text.split_inclusive("-----END CERTIFICATE-----")
            .filter(|part| part.contains("-----BEGIN CERTIFICATE-----"))
            .map(|part| part.split_whitespace().collect())
            .collect()
    };
    let shipped = certificates(&bundle);
    assert!(shipped.len() > 100, "{}", shipped.len());
    let of_package: Vec<_> = samples::files("/usr/share/ca-certificates/mozilla".as_ref())
        .iter()
        .flat_map(|path| certificates(&fs::read_to_string(path).unwrap()))
        .collect();
    for certificate in &shipped {
        assert!(
            of_package.contains(certificate),
            "whose is this: {certificate}"
        );
    }
    assert_eq!(shipped.len(), of_package.len());
}

#[test]
fn the_binary_is_static_stripped_and_tells_nothing_of_the_machine() {
    let headers = output(
        Command::new("readelf")
            .args(["--wide", "--program-headers", "--dynamic", "--sections"])
            .arg(binary()),
    );
    assert!(headers.contains("LOAD"), "{headers}");
    for dynamic in ["INTERP", "(NEEDED)"] {
        assert!(!headers.contains(dynamic), "{dynamic}: {headers}");
    }
    assert!(
        !headers.contains(".symtab") && !headers.contains(".debug_info"),
        "{headers}"
    );
    // What an attacker would like to find otherwise.
    let stack = headers
        .lines()
        .find(|line| line.contains("GNU_STACK"))
        .unwrap();
    assert!(!stack.contains('E'), "the stack can be executed: {stack}");
    assert!(
        headers.contains("GNU_RELRO") && headers.contains("PIE"),
        "{headers}"
    );

    let bytes = fs::read(binary()).unwrap();
    let home = std::env::var("HOME").unwrap();
    let cargo = std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]));
    let root = samples::root().to_str().unwrap();
    for path in [
        root,
        &cargo,
        sysroot.trim(),
        "/.cargo/registry/",
        "/.rustup/",
    ] {
        assert!(path.len() > 3, "{path}");
        assert!(find(&bytes, path).is_none(), "{path} stands in the binary");
    }
    // They are there under the names that are the same everywhere, so that a panic still says where it was.
    for name in ["/crates/tokio-", "src/gate/mod.rs"] {
        assert!(find(&bytes, name).is_some(), "{name} is missing");
    }
    // And nothing of the tests' switches.
    for name in ["TIKIGATE_FAILPOINT", "failpoint"] {
        assert!(find(&bytes, name).is_none(), "{name} stands in the binary");
    }
}
