#!/usr/bin/env python3
"""TLS at the listener: full handshakes per CPU second beside HAProxy's, and memory of idle connections.

    benches/edge/tls.py                       all of it
    benches/edge/tls.py --only handshakes --rounds 9 --seconds 4
    benches/edge/tls.py --only idle --idle 2000

The parts:
  handshakes  `openssl s_time -new` in several processes, to the gate and to HAProxy in turns, with the same
              certificate (ECDSA P-256, RSA-2048), by TLS 1.3 and 1.2. What counts is the server's CPU time a
              handshake, so that the callers, who share the machine, don't. Both have one thread.
  idle        --idle kept-alive connections, each after one request: the server's resident memory, less what
              it had before, in all and a connection; plain and by TLS

Figures are medians of the rounds, with the least and the most.

Needs Debian's haproxy and openssl, and a release build. Everything listens on loopback and stops with the
script.
"""

import argparse
import pathlib
import resource
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import BINARY, CLIENT, SECRET, Process, connect, free_port, prepare, trusting

KEYS = {"ECDSA-P-256": "ec -pkeyopt ec_paramgen_curve:P-256", "RSA-2048": "rsa:2048"}
# HAProxy reserves two open files for each connection, of which a usual limit is 20,000.
PEER_MOST = 9_900


def certificate(folder, kind):
    """An authority's certificate for localhost, with its key; the names of both files."""
    folder.mkdir()
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\nkeyUsage=critical,digitalSignature\n")
    for command in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=ca",
        f"req -newkey {kind} -nodes -keyout key.pem -out request.pem -subj /CN=localhost",
        "x509 -req -in request.pem -CA ca.crt -CAkey ca.key -CAcreateserial -out crt.pem -days 30 -extfile extensions",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "crt.pem").read_text() + (folder / "key.pem").read_text())
    return folder / "crt.pem", folder / "key.pem", both


def gate(folder, tls=None):
    folder.mkdir()
    port, admin = free_port(), free_port()
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    shown = f'tls = {{ certificate = "{tls[0]}", private_key = "{tls[1]}" }}' if tls else ""
    config = folder / "tikigate.toml"
    # All callers have one address: its share is half of the places.
    config.write_text(
        f"""[server]
listen = "127.0.0.1:{port}"
workers = 1
drain_delay = "0s"
max_connections = 100000
idle_timeout = "3600s"
per_address = {{ per_second = 1000000, burst = 1000000 }}
{shown}
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.legacy]
url = "http://127.0.0.1:1"
[[clients]]
id = "{CLIENT}"
secrets = [{{ name = "now", file = "secret" }}]
[[routes]]
name = "any"
path = "/any"
payload = "any"
[ledger]
store = "memory"
allow_volatile = true
[log]
level = "error"
"""
    )
    process = Process([str(BINARY), "serve", "--config", str(config)], port, folder / "log")
    process.admin = admin
    return process


def haproxy(folder, tls=None):
    folder.mkdir()
    port = free_port()
    shown = f"ssl crt {tls[2]} alpn http/1.1" if tls else ""
    config = folder / "haproxy.cfg"
    config.write_text(
        f"""global
  nbthread 1
  maxconn {PEER_MOST + 50}
defaults
  mode http
  timeout client 1h
  timeout http-keep-alive 1h
  timeout server 30s
  timeout connect 5s
frontend gate
  bind 127.0.0.1:{port} {shown}
  http-request return status 404
"""
    )
    return Process(["haproxy", "-db", "-f", str(config)], port, folder / "log")


def shake_hands(port, version, seconds, processes):
    """How many full handshakes there were."""
    command = ["openssl", "s_time", "-new", f"-{version}", "-time", str(seconds), "-connect", f"127.0.0.1:{port}"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(processes)
    ]
    total = 0
    for process in running:
        said, _ = process.communicate()
        found = re.search(r"^(\d+) connections in \d+ real seconds", said, re.M)
        if not found:
            sys.exit(f"s_time: {said}")
        total += int(found[1])
    return total


def spread(figures, form="{:.0f}"):
    least, middle, most = min(figures), statistics.median(figures), max(figures)
    return f"{form.format(middle)} ({form.format(least)}–{form.format(most)})"


def handshakes(folder, args):
    print("Full handshakes per CPU second of the server: median (least–most)")
    for kind, key in KEYS.items():
        tls = certificate(folder / kind, key)
        servers = {"gate": gate(folder / f"gate-{kind}", tls), "haproxy": haproxy(folder / f"haproxy-{kind}", tls)}
        for version in ("tls1_3", "tls1_2"):
            figures = {name: [] for name in servers}
            for _ in range(args.rounds):
                for name, server in servers.items():
                    before = server.cpu_seconds()
                    count = shake_hands(server.port, version, args.seconds, args.processes)
                    figures[name].append(count / (server.cpu_seconds() - before))
            ratios = [ours / theirs for ours, theirs in zip(figures["gate"], figures["haproxy"])]
            print(
                f"  {kind:12} {version}  gate {spread(figures['gate'])}  haproxy {spread(figures['haproxy'])}"
                f"  ratio {spread(ratios, '{:.2f}')}",
                flush=True,
            )
        for server in servers.values():
            server.stop()


def idle(folder, args):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < args.idle + 100:
        sys.exit(f"this needs {args.idle + 100} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"Resident memory of {args.idle} idle connections")
    tls = certificate(folder / "idle", KEYS["ECDSA-P-256"])
    context = trusting()
    for name, start in (("gate", gate), ("haproxy", haproxy)):
        for shown, with_tls, by in (("plain", None, None), ("TLS", tls, context)):
            server = start(folder / f"idle-{name}-{shown}", with_tls)
            connect(server.port, by).close()
            before = server.rss_mib()
            count = args.idle if name == "gate" else min(args.idle, PEER_MOST)
            held = [connect(server.port, by) for _ in range(count)]
            time.sleep(1)
            after = server.rss_mib()
            each = (after - before) * 1024 / count
            print(f"  {name:8} {shown:6} {after:.0f} MiB, of which {before:.0f} before; {each:.1f} KiB each", flush=True)
            server.stop()
            for connection in held:
                connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("handshakes", "idle"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="callers that shake hands at once")
    parser.add_argument("--idle", type=int, default=10_000)
    args = parser.parse_args()
    prepare("haproxy", "openssl")
    with tempfile.TemporaryDirectory() as directory:
        if args.only != "idle":
            handshakes(pathlib.Path(directory), args)
        if args.only != "handshakes":
            idle(pathlib.Path(directory), args)


if __name__ == "__main__":
    main()
