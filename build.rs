//! How the program is linked: with its relative relocations packed, where that is known to work.
//!
//! There are some 18,000, of addresses in constant tables: 24 bytes each, or about a hundredth of that as a
//! bitmap (`DT_RELR`). Linkers that don't know the flag warn and go on. Loaders must know it: glibc's does since 2.36,
//! and an older one would run the program into its unrelocated tables.

use std::process::Command;

/// The first glibc whose loader knows `DT_RELR`.
const LEAST: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    let here = of("HOST") == of("TARGET");
    let gnu = of("CARGO_CFG_TARGET_OS") == "linux" && of("CARGO_CFG_TARGET_ENV") == "gnu";
    if here && gnu && glibc().is_some_and(|version| version >= LEAST) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this system's glibc.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
