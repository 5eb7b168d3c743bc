"""What is in the binary and in the image: read from what the build said, not from what was planned.

Used by `sbom` and `licences`, which print it for machines and for people.
"""

import functools
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "target" / "image"


def run(*command):
    """Standard output of a command that must work."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@functools.cache
def toolchain():
    """`rustc --version --verbose` as a dictionary."""
    lines = run("rustc", "--version", "--verbose").splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def binary():
    """The path of the binary that `build` made."""
    path = TARGET / toolchain()["host"] / "release" / "tikigate"
    if not path.exists():
        sys.exit("there is no binary yet: run deploy/image/build")
    return path


def sha256(path):
    """The hash of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Crate:
    """A crate that took part in the build."""

    def __init__(self, package, linked, checksum):
        self.id = package["id"]
        self.name = package["name"]
        self.version = package["version"]
        self.licence = package["license"]
        self.authors = package["authors"]
        self.directory = Path(package["manifest_path"]).parent
        self.repository = package["repository"]
        self.description = package["description"]
        self.linked = linked
        self.checksum = checksum
        self.needs = []

    @property
    def purl(self):
        """Its package URL, which names it here too."""
        version = self.version.replace("+", "%2B")
        return f"pkg:cargo/{self.name}@{version}"


def crates():
    """The crate itself first, then all others by name and version.

    A crate is linked if code of it was compiled for the target; the others ran while it was built, as macros and
    build scripts.
    """
    linked, built = set(), set()
    for line in (TARGET / "messages.jsonl").read_text().splitlines():
        message = json.loads(line)
        if message["reason"] != "compiler-artifact":
            continue
        identity = message["package_id"]
        built.add(identity)
        for_target = any(f"/{toolchain()['host']}/release/" in name for name in message["filenames"])
        if for_target and "custom-build" not in message["target"]["kind"]:
            linked.add(identity)
    metadata = json.loads(
        run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", toolchain()["host"])
    )
    sums = checksums()
    found = {}
    for package in metadata["packages"]:
        if package["id"] in built:
            checksum = sums.get((package["name"], package["version"]))
            found[package["id"]] = Crate(package, package["id"] in linked, checksum)
    missing = built - found.keys()
    if missing:
        sys.exit(f"cargo built what it does not know: {sorted(missing)}")
    for node in metadata["resolve"]["nodes"]:
        if node["id"] in found:
            kinds = {d["pkg"]: {kind["kind"] for kind in d["dep_kinds"]} for d in node["deps"]}
            needed = [found[i] for i, kind in kinds.items() if i in found and kind != {"dev"}]
            found[node["id"]].needs = sorted(crate.purl for crate in needed)
    root = found.pop(metadata["resolve"]["root"])
    return root, sorted(found.values(), key=lambda crate: (crate.name, crate.version))


def checksums():
    """What Cargo.lock says that each crate's archive must be."""
    import tomllib

    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if "checksum" in p}


def only(pattern, text, what):
    """The first group of the one match; nothing is guessed."""
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"the version of {what} is nowhere to be found")
    return match.group(1)


def file_of(crate, path):
    """A file of a crate's sources."""
    return (crate.directory / path).read_text()


def bundled(others):
    """Code in the binary that is no crate: (name, version, licence, what it is, the crate that brings it or None)."""
    by_name = {crate.name: crate for crate in others}
    sqlite, aws_lc = by_name["libsqlite3-sys"], by_name["aws-lc-sys"]
    content = binary().read_bytes().decode("latin-1")
    rust = toolchain()
    return [
        (
            "sqlite",
            only(r'#define SQLITE_VERSION +"([^"]+)"', file_of(sqlite, "sqlite3/sqlite3.h"), "SQLite"),
            "blessing",
            "SQLite, compiled from the amalgamation in libsqlite3-sys",
            sqlite,
        ),
        (
            "aws-lc",
            only(
                r'#define AWSLC_VERSION_NUMBER_STRING +"([^"]+)"',
                file_of(aws_lc, "aws-lc/include/openssl/base.h"),
                "AWS-LC",
            ),
            "ISC AND (Apache-2.0 OR ISC)",
            "AWS-LC, compiled from the sources in aws-lc-sys",
            aws_lc,
        ),
        # It says in the binary itself which one it is.
        (
            "glibc",
            only(r"GNU C Library \([^)]*GLIBC ([^)]+)\)", content, "glibc"),
            "LGPL-2.1-or-later",
            "The GNU C library, linked in",
            None,
        ),
        (
            "libgcc",
            run("cc", "-dumpfullversion").strip(),
            "GPL-3.0-or-later WITH GCC-exception-3.1",
            "GCC's runtime library with its unwinder, linked in",
            None,
        ),
        (
            "rust-std",
            rust["release"],
            "MIT OR Apache-2.0",
            f"Rust's standard library, of commit {rust['commit-hash']}",
            None,
        ),
    ]


# Files of the image that come from packages of the distribution: (package, what it brings).
DATA = [
    ("ca-certificates", "Mozilla's certificate authorities"),
    ("tzdata", "The time zone database"),
]


def data():
    """The image's data: (package, version, what it brings)."""
    query = ["dpkg-query", "--show", "--showformat", "${Version}"]
    return [(package, run(*query, package), what) for package, what in DATA]
