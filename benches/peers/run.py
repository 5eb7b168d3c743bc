#!/usr/bin/env python3
"""CPU time per request of the gate beside the proxies that a partner could put there instead.

    benches/peers/run.py                                  all of it, an hour
    benches/peers/run.py --only targets --rounds 9        one part of it
    benches/peers/run.py --only targets --targets haproxy,verify --rounds 3 --seconds 1
    benches/peers/run.py --json peers.json --plot docs/performance.svg

Installs what it needs and says so: Debian's nginx with njs, haproxy and wrk, and Envoy from the Python index into
target/tools/peers; builds the gate (cargo build --release) where that is missing.

One nginx is the backend of all. Each target gets calls that were signed before, over kept-alive connections
from wrk. The targets take turns for several rounds; what counts is the CPU time of all of a target's processes per
answered request, as a ratio to HAProxy's, which checks the same signature, and to nginx's, which passes everything
through, in the same round. Within a turn no call comes twice: a repeat would be a replay, and look fast.

The parts:
  targets      300 B bodies, 64 connections: HAProxy, nginx, nginx with njs, Envoy, and the gate with
               verify only (payload = "any", no key), IPNs and refunds with SQLite, replays, and what it refuses
  plain        what plain proxies take that only check (benches/plain): the system calls and the hash, the same by
               hyper alone, with what is durable appended to a file or in one table of SQLite, with fresh connections
  bodies       4 KiB and 64 KiB
  connections  1 and 512 at once
  tls          the same by TLS at the listener
  workers      two workers against one, each bound to a fifth of a core, so that neither load nor backend limit
  memory       resident memory after a million requests, and of idle connections
  records      refunds with --records in the ledger against a thousand, and from start to ready (benches/ledger)
  path         instructions and allocations a request (benches/path, under callgrind)
  binary       how large the release binary is

Figures are medians of the rounds, with the least and the most. Four equal servers differ by 0.05: smaller
differences say nothing. Everything listens on loopback and stops with the script.
"""

import argparse
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from common import REPO, say
import install
import goals
import machine
import parts
import report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(parts.PARTS), help="parts, with commas between")
    parser.add_argument("--targets", default="", help="of the parts with targets: words of their names, with commas between")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--filled", help="a folder that keeps the ledger with --records for the next run")
    parser.add_argument("--million", type=int, default=1_000_000, help="requests before memory is looked at")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections")
    parser.add_argument("--json", metavar="FILE", help="all figures of all rounds")
    parser.add_argument("--plot", metavar="FILE", help="the part `targets` as SVG")
    args = parser.parse_args()
    args.only = [name.strip() for name in args.only.split(",")]
    args.targets = [name.strip() for name in args.targets.split(",") if name.strip()]
    unknown = [name for name in args.only if name not in parts.PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}; there are {', '.join(parts.PARTS)}")
    install.prepare()

    results = {"machine": machine.note(), "arguments": vars(args)}
    print(results["machine"]["line"])
    with tempfile.TemporaryDirectory(prefix="peers-", dir=REPO / "target") as directory:
        for name in args.only:
            say(f"{name} ...")
            results[name] = parts.PARTS[name](pathlib.Path(directory), args)
            report.show(name, results[name], args)
    results["goals"] = goals.judge(results)
    report.show_goals(results["goals"])
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if args.plot and "targets" in results:
        import plot

        pathlib.Path(args.plot).write_text(plot.bars(results["targets"], results["machine"]))


if __name__ == "__main__":
    main()
