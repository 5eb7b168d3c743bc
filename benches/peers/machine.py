"""What a run was made on, for whoever compares figures."""

import os
import pathlib
import platform
import subprocess
import time

import install
import proxies
from common import BINARY, REPO


def note():
    """The machine and the versions, as data and as one line."""
    fields = dict(
        line.split(":", 1) for line in pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    info = {key.strip(): value.strip() for key, value in fields.items()}
    flags = info.get("flags", "").split()
    commit = subprocess.run(["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    said = {
        "cpu": info.get("model name", "unknown"),
        "cores": os.cpu_count(),
        "sha_instructions": "sha_ni" in flags,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": platform.release(),
        "day": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
        "tikigate": proxies.version(str(BINARY), "--version"),
        "commit": commit.stdout.strip() or "unknown",
        "haproxy": proxies.version("haproxy", "-v"),
        "nginx": proxies.version("nginx", "-v"),
        "envoy": proxies.version(str(install.envoy()), "--version"),
        "wrk": "wrk",
    }
    said["line"] = (
        f"{said['day']}: {said['cores']} cores of {said['cpu']} ({'with' if said['sha_instructions'] else 'without'} SHA"
        f" instructions), {said['memory_gib']} GiB, Linux {said['kernel']}; {said['tikigate']} at {said['commit']};"
        f" {said['haproxy'].split(' ', 3)[2]} HAProxy; {said['nginx'].split('/')[-1]} nginx"
    )
    return said
