#!/usr/bin/env python3
"""CPU time per request of the gate and of HAProxy checking the same signature, side by side.

One nginx is the backend of all. Each target gets signed calls that were prepared before, none twice,
over kept-alive connections from wrk; the targets take turns for several rounds, and what counts is the
CPU time of the target's processes per answered request, as a ratio to HAProxy's in the same round.

    benches/peers/run.py                     a release build is measured
    benches/peers/run.py --rounds 9 --seconds 4 --connections 64

Needs Debian's wrk, nginx and haproxy. Everything listens on loopback and stops with the script.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

CLIENT = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W"
SECRET = "a-secret-for-measuring"
REPO = pathlib.Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def signed(body):
    timestamp = str(int(time.time() * 1000))
    payload = f"{timestamp}.{CLIENT}.".encode() + body
    encoded = base64.urlsafe_b64encode(payload).rstrip(b"=")
    return timestamp, hmac.new(SECRET.encode(), encoded, hashlib.sha256).hexdigest()


def request(path, number, size, forge=False):
    body = (
        f'{{"tiki_transaction_id":"t-{number}","transaction_amount":150000,"transaction_id":"p-{number}",'
        f'"status":"SUCCESS","reason_of_the_call":"'
    )
    if path.endswith("refund"):
        body = body.replace('"status":"SUCCESS","reason_of_the_call"', f'"request_id":"r-{number}","reason"')
    body = (body + "x" * (size - len(body) - 2) + '"}').encode()
    timestamp, signature = signed(body)
    if forge:
        signature = signature[:-1] + ("1" if signature[-1] == "0" else "0")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Tikivip-Timestamp: {timestamp}\r\nX-Tikivip-Client-Id: {CLIENT}\r\nX-Tikivip-Signature: {signature}\r\n\r\n"
    )
    return head.encode() + body


# wrk's own requests would be one and the same: this hands out prepared ones, each thread its own part.
WRK_SCRIPT = """
local threads = 0
function setup(thread) thread:set("part", threads); threads = threads + 1 end
function init(args)
  local file = assert(io.open("%(file)s", "rb"))
  requests, at = {}, 0
  local number = 0
  while true do
    local size = file:read(8)
    if not size then break end
    local text = file:read(tonumber(size))
    if number %% %(threads)d == part then requests[#requests + 1] = text end
    number = number + 1
  end
end
function request() at = at + 1; return requests[at] or os.exit(9) end
function response(status) if status ~= %(status)d then bad = (bad or 0) + 1 end end
function done(summary, latency)
  io.write(string.format("RESULT %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99)))
end
"""


class Process:
    """A server of this run, with the CPU time of all its processes."""

    def __init__(self, command, port, log):
        self.process = subprocess.Popen(
            command, stdout=open(log, "wb"), stderr=subprocess.STDOUT, start_new_session=True
        )
        self.port = port
        deadline = time.time() + 15
        while time.time() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        sys.exit(f"{command[0]} does not listen: {open(log).read()}")

    def pids(self):
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(child) for child in task.read_text().split()]
        return found

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def rss_mib(self):
        pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def nginx(directory, port, upstream=None):
    location = 'return 200 "{\\"data\\":{\\"status\\":\\"success\\"}}";'
    block = ""
    if upstream:
        location = "proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection '';"
        block = f"upstream backend {{ server 127.0.0.1:{upstream}; keepalive 64; }}"
    config = directory / f"nginx-{port}.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {directory}/nginx-{port}.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{ access_log off; default_type application/json; keepalive_requests 100000000; client_body_buffer_size 128k;
client_body_temp_path {directory}/b{port}; proxy_temp_path {directory}/p{port}; fastcgi_temp_path {directory}/f{port};
uwsgi_temp_path {directory}/u{port}; scgi_temp_path {directory}/s{port};
{block} server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ {location} }} }} }}"""
    )
    return Process(["nginx", "-c", str(config), "-p", str(directory)], port, directory / f"nginx-{port}.log")


def haproxy(directory, port, backend):
    key = base64.b64encode(SECRET.encode()).decode()
    config = directory / "haproxy.cfg"
    config.write_text(
        f"""global
  nbthread 1
  tune.bufsize 131072
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
  option http-keep-alive
  http-reuse always
frontend gate
  bind 127.0.0.1:{port}
  option http-buffer-request
  http-request set-var(txn.ts) req.hdr(x-tikivip-timestamp)
  http-request set-var(txn.client) req.hdr(x-tikivip-client-id)
  http-request set-var(txn.body) req.body
  http-request set-var(txn.mac) str(),concat(,txn.ts,.),concat(,txn.client,.),concat(,txn.body),ub64enc,hmac(sha256,{key}),hex,lower
  http-request set-var(txn.sig) req.hdr(x-tikivip-signature)
  http-request deny deny_status 401 unless {{ var(txn.mac),secure_memcmp(txn.sig) }}
  default_backend legacy
backend legacy
  server legacy 127.0.0.1:{backend}
"""
    )
    return Process(["haproxy", "-db", "-f", str(config)], port, directory / "haproxy.log")


def tikigate(directory, name, port, admin, backend):
    folder = directory / name
    folder.mkdir()
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    config = folder / "tikigate.toml"
    config.write_text(
        f"""[server]
listen = "127.0.0.1:{port}"
workers = 1
drain_delay = "0s"
per_address = {{ per_second = 1000000, burst = 1000000 }}
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.legacy]
url = "http://127.0.0.1:{backend}"
max_in_flight = 256
[signature]
max_remembered = 16000000
[[clients]]
id = "{CLIENT}"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 1000000, burst = 1000000 }}
[[routes]]
name = "any"
path = "/any"
payload = "any"
[[routes]]
name = "ipn"
path = "/ipn"
payload = "transaction_ipn"
[[routes]]
name = "refund"
path = "/refund"
payload = "refund"
[ledger]
store = "memory"
allow_volatile = true
max_records = 50000000
max_bytes = "16GiB"
"""
    )
    binary = REPO / "target/release/tikigate"
    return Process([str(binary), "serve", "--config", str(config)], port, folder / "log")


class Target:
    """A server and the calls that are sent to it."""

    def __init__(self, name, process, path, status=200, forge=False, repeat=False):
        self.name, self.process, self.path = name, process, path
        self.status, self.forge, self.repeat = status, forge, repeat
        self.figures = []


def measure(target, directory, args, first_number):
    calls = directory / "calls"
    count = args.calls
    with open(calls, "wb") as file:
        one = request(target.path, first_number, args.size, target.forge)
        for number in range(first_number, first_number + count):
            text = one if target.repeat else request(target.path, number, args.size, target.forge)
            file.write(b"%8d" % len(text) + text)
    script = directory / "calls.lua"
    script.write_text(WRK_SCRIPT % {"file": calls, "threads": 1, "status": target.status})
    before = target.process.cpu_seconds()
    command = ["wrk", "-t1", f"-c{args.connections}", f"-d{args.seconds}s", "-s", str(script),
               f"http://127.0.0.1:{target.process.port}{target.path}"]
    run = subprocess.run(command, capture_output=True, text=True)
    used = target.process.cpu_seconds() - before
    line = next((line for line in run.stdout.splitlines() if line.startswith("RESULT")), None)
    if run.returncode == 9 or line is None:
        sys.exit(f"{target.name}: the prepared calls ran out; give more with --calls\n{run.stdout}{run.stderr}")
    requests, micros, p50, p99 = map(int, line.split()[1:])
    failures = 0
    for text in run.stdout.splitlines():
        if "Non-2xx" in text:
            failures = int(text.split()[-1])
    expected_failures = requests if target.status != 200 else 0
    return {
        "cpu_us": used * 1e6 / requests,
        "per_second": requests * 1e6 / micros,
        "p50_ms": p50 / 1000,
        "p99_ms": p99 / 1000,
        "rss_mib": target.process.rss_mib(),
        "unexpected": abs(failures - expected_failures),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--size", type=int, default=300, help="bytes of a body")
    parser.add_argument("--calls", type=int, default=0, help="calls prepared for each turn")
    parser.add_argument("--only", default="", help="names of targets, with commas between")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.calls = args.calls or args.seconds * 120_000
    missing = [tool for tool in ("wrk", "nginx", "haproxy") if not shutil.which(tool)]
    if missing:
        sys.exit(f"missing: {' '.join(missing)} (apt-get install {' '.join(missing)})")

    directory = pathlib.Path(tempfile.mkdtemp(prefix="tikigate-peers-"))
    running = []
    try:
        backend = nginx(directory, free_port())
        running.append(backend)
        peers = {
            "haproxy": haproxy(directory, free_port(), backend.port),
            "nginx": nginx(directory, free_port(), backend.port),
            "gate": tikigate(directory, "gate", free_port(), free_port(), backend.port),
        }
        running += peers.values()
        gate = peers["gate"]
        targets = [
            Target("haproxy, checking", peers["haproxy"], "/any"),
            Target("nginx, passing through", peers["nginx"], "/any"),
            Target("gate, verify only", gate, "/any"),
            Target("gate, IPN", gate, "/ipn"),
            Target("gate, refund", gate, "/refund"),
            Target("gate, replay", gate, "/refund", repeat=True),
            Target("gate, forged", gate, "/any", status=401, forge=True),
        ]
        wanted = [name.strip() for name in args.only.split(",") if name.strip()]
        if wanted:
            targets = [target for target in targets if any(name in target.name for name in wanted)]
        number = 1
        for turn in range(args.rounds):
            for target in targets:
                target.figures.append(measure(target, directory, args, number))
                number += args.calls
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
    finally:
        for process in running:
            process.stop()
        shutil.rmtree(directory, ignore_errors=True)

    report(targets, args)


def report(targets, args):
    base = targets[0]
    rows = []
    for target in targets:
        ratios = sorted(
            figure["cpu_us"] / reference["cpu_us"] for figure, reference in zip(target.figures, base.figures)
        )
        median = {key: statistics.median(figure[key] for figure in target.figures) for key in target.figures[0]}
        rows.append({"target": target.name, **median, "ratio": statistics.median(ratios),
                     "ratio_min": ratios[0], "ratio_max": ratios[-1]})
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{args.size} B bodies, {args.connections} connections, medians of {args.rounds} rounds; ratios to {base.name}")
    print(f"{'':24} {'CPU µs':>8} {'ratio':>6} {'(min-max)':>12} {'req/s':>8} {'p50 ms':>7} {'p99 ms':>7} {'RSS MiB':>8} {'odd':>5}")
    for row in rows:
        spread = f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}"
        print(f"{row['target']:24} {row['cpu_us']:8.1f} {row['ratio']:6.2f} {spread:>12} {row['per_second']:8.0f} "
              f"{row['p50_ms']:7.2f} {row['p99_ms']:7.2f} {row['rss_mib']:8.1f} {row['unexpected']:5.0f}")


if __name__ == "__main__":
    main()
