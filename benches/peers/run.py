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
import json
import pathlib
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import MEMORY, SECRET, Process, free_port, load, prepare, nginx, request, tikigate, write_calls


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


class Target:
    """A server and the calls that are sent to it."""

    def __init__(self, name, process, path, status=200, forge=False, repeat=False):
        self.name, self.process, self.path = name, process, path
        self.status, self.forge, self.repeat = status, forge, repeat
        self.figures = []


def measure(target, directory, args, first_number):
    calls = directory / "calls"
    one = request(target.path, first_number, args.size, target.forge)
    numbers = range(first_number, first_number + args.calls)
    texts = (one if target.repeat else request(target.path, number, args.size, target.forge) for number in numbers)
    write_calls(calls, texts)
    before = target.process.cpu_seconds()
    seen = load(target.name, calls, target.process.port, args.seconds, args.connections)
    used = target.process.cpu_seconds() - before
    answered = seen["answered"]
    expected = answered if target.status != 200 else 0
    return {
        "cpu_us": used * 1e6 / answered,
        "per_second": seen["per_second"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "rss_mib": target.process.rss_mib(),
        "unexpected": abs(seen["refused"] - expected) + seen["broken"],
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
    prepare("wrk", "nginx", "haproxy")

    directory = pathlib.Path(tempfile.mkdtemp(prefix="tikigate-peers-"))
    running = []
    try:
        backend = nginx(directory, free_port())
        running.append(backend)
        peers = {
            "haproxy": haproxy(directory, free_port(), backend.port),
            "nginx": nginx(directory, free_port(), backend.port),
            "gate": tikigate(directory / "gate", free_port(), backend.port, MEMORY),
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
