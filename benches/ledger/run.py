#!/usr/bin/env python3
"""Speed and size of the durable ledger: refunds, replays, ten million records, start and expiry.

    benches/ledger/run.py                                 all of it, with ten million records
    benches/ledger/run.py --only refunds --rounds 9       one part of it
    benches/ledger/run.py --records 100000 --expire 20000 a quick look
    benches/ledger/run.py --filled DIR                    keeps the filled file there, and uses it again

The parts:
  refunds  refunds and replays, both with store = "sqlite" and with store = "memory", in turns, beside a loop
           that appends 4 KiB and calls fdatasync, in the same directory
  sizes    the same with --records finished records in the file against a thousand; start-up, memory, bytes
  expiry   p99 of refunds while --expire of the records are forgotten, against the same gate's before

Before each start the file is read once, so that a call's CPU time is the gate's and not the disk's.
nginx is the backend; it, wrk and the gate share the machine. Each turn gets calls that were signed before
it, none twice. Figures are medians of the rounds, with the least and the most. "others" is what the rest of the
machine used of its cores meanwhile: beyond a few per cent, only ratios within a round say something.

Needs Debian's wrk and nginx, and a release build. Everything listens on loopback and stops with the script.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import MEMORY, REPO, SQLITE, free_port, load, prepare, nginx, request, say, send, tikigate, write_calls
from filled import FIRST, Filled

CORES = os.cpu_count()
# The gate looks for expired records this often: app/sweep.rs.
SWEEP_EVERY = 60


def show(text):
    print(text, file=show.to, flush=True)


class Gate:
    """A gate in a folder of its own, started as often as wanted."""

    def __init__(self, folder, backend, ledger, workers):
        self.folder, self.backend, self.ledger, self.workers = folder, backend, ledger, workers
        self.database = folder / "tikigate.db"
        self.admin = free_port()
        self.process = None

    def start(self):
        """Seconds from exec to ready."""
        self.process = tikigate(self.folder, self.admin, self.backend.port, self.ledger, self.workers)
        while self.get("/readyz")[0] != 200:
            if time.monotonic() - self.process.began > 60:
                sys.exit(f"not ready: {(self.folder / 'log').read_text()}")
            time.sleep(0.002)
        return time.monotonic() - self.process.began

    def stop(self):
        if self.process:
            self.process.stop(within=60)
            self.process = None

    def kill(self):
        self.process.end(signal.SIGKILL)
        self.process = None

    def get(self, path):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=10)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def count(self, metric, label=""):
        """The sum of a metric's samples that have this label."""
        lines = self.get("/metrics")[1].splitlines()
        found = [line for line in lines if re.match(metric + r"[{ ]", line) and label in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


class Bench:
    """What the parts share."""

    def __init__(self, directory, backend, args):
        self.directory, self.backend, self.args = directory, backend, args
        self.next_number = time.time_ns() // 1000  # above every number of a filled file
        self.random = random.Random(1)
        self.rates = {}
        assert self.next_number > FIRST

    def gate(self, name, ledger=SQLITE):
        return Gate(self.directory / name, self.backend, ledger, self.args.workers)

    def fresh(self, count):
        """Signed refunds that no gate has seen."""
        for _ in range(count):
            self.next_number += 1
            yield request("/refund", self.next_number, self.args.size)

    def again(self, count, number):
        """Signed calls, each anew, whose keys were done before."""
        for serial in range(count):
            yield request("/refund", number(), self.args.size, reason=f"{serial}:{self.next_number}")

    def turn(self, gate, name, calls, seconds=None, replays=False):
        """One measured load. `calls` makes as many as it is asked for."""
        seconds = seconds or self.args.seconds
        wanted = self.args.calls or int(self.rates.get(name, 60_000 if replays else 15_000) * 2 * seconds) + 5_000
        file = self.directory / "calls"
        write_calls(file, calls(wanted))
        replayed, threads, busy = gate.count("tikigate_replays_total"), gate.process.cpu_by_thread(), Busy(gate, self)
        seen = load(name, file, gate.process.port, seconds, self.args.connections)
        others = busy.others()
        after = gate.process.cpu_by_thread()
        replayed = gate.count("tikigate_replays_total") - replayed
        answered = seen["answered"]
        # Two at once for one key share one look into the ledger.
        if replays and replayed < answered * 0.99 or not replays and replayed:
            sys.exit(f"{name}: {replayed} replays in {answered} calls")
        self.rates[name] = max(self.rates.get(name, 0), seen["per_second"])
        micros = {thread: (used - threads.get(thread, 0)) * 1e6 / answered for thread, used in after.items()}
        return {
            "answered": answered,
            "per_second": seen["per_second"],
            "p50_ms": seen["p50_ms"],
            "p99_ms": seen["p99_ms"],
            "cpu_us": sum(micros.values()),
            "writer_us": sum(used for thread, used in micros.items() if thread.startswith("ledger-")),
            "rss_mib": gate.process.rss_mib(),
            "odd": seen["refused"] + seen["broken"],
            "others": others,
        }

    def warm_up(self, gate):
        write_calls(self.directory / "calls", self.fresh(30_000))
        load("warm-up", self.directory / "calls", gate.process.port, 1, self.args.connections)


class Busy:
    """What the machine's cores did for others than this run."""

    def __init__(self, gate, bench):
        self.ours = lambda: sum(
            (gate.process.cpu_seconds(), bench.backend.cpu_seconds(), own(resource.RUSAGE_SELF), own(resource.RUSAGE_CHILDREN))
        )
        self.began, self.used, self.all = time.monotonic(), self.ours(), machine_seconds()

    def others(self):
        """As a share of all cores."""
        passed = (time.monotonic() - self.began) * CORES
        return max(0, (machine_seconds() - self.all) - (self.ours() - self.used)) / passed


def own(whose):
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def machine_seconds():
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def fdatasyncs(directory, seconds=1.0):
    """4 KiB appended and synced, a second."""
    path = directory / "raw"
    block, count = b"x" * 4096, 0
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        os.write(file, block)
        os.fdatasync(file)
        count += 1
    took = time.monotonic() - began
    os.close(file)
    path.unlink()
    return count / took


def refunds(bench):
    """Refunds and replays with a durable ledger, beside the one in memory and a bare fdatasync."""
    gates = {"sqlite": bench.gate("sqlite"), "memory": bench.gate("memory", MEMORY)}
    figures = {f"{what}, {store}": [] for what in ("refund", "replay") for store in gates}
    raw = []
    try:
        for gate in gates.values():
            gate.start()
            bench.warm_up(gate)
        for turn in range(bench.args.rounds):
            raw.append(fdatasyncs(bench.directory))
            done = {}
            for store, gate in gates.items():
                first = bench.next_number + 1
                figures[f"refund, {store}"].append(bench.turn(gate, f"refund, {store}", bench.fresh))
                # wrk takes them in their order: the first of them were answered.
                answered = int(figures[f"refund, {store}"][-1]["per_second"] * bench.args.seconds * 0.9)
                done[store] = (first, first + answered)
            for store, gate in gates.items():
                def replays(count, of=done[store]):
                    return bench.again(count, lambda: bench.random.randrange(*of))

                figures[f"replay, {store}"].append(bench.turn(gate, f"replay, {store}", replays, replays=True))
            say(f"refunds: round {turn + 1} of {bench.args.rounds}")
    finally:
        for gate in gates.values():
            gate.stop()
    table(f"Refunds and replays, {bench.args.connections} connections, {bench.args.size} B bodies", figures)
    refund, memory, replay = figures["refund, sqlite"], figures["refund, memory"], figures["replay, sqlite"]
    result = {
        "fdatasync_per_second": spread(raw),
        "refunds_to_memory": spread(ratios(refund, memory, "per_second")),
        "added_cpu_us": spread([ours["cpu_us"] - theirs["cpu_us"] for ours, theirs in zip(refund, memory)]),
        "refunds_to_fdatasyncs": spread([figure["per_second"] / rate for figure, rate in zip(refund, raw)]),
        "replays_to_refunds": spread(ratios(replay, refund, "per_second")),
    }
    line("4 KiB appended and synced, a second", result["fdatasync_per_second"], "{:.0f}")
    line("refunds a second, to those with memory", result["refunds_to_memory"])
    line("refunds a second, to fdatasyncs", result["refunds_to_fdatasyncs"])
    line("CPU of a refund beyond memory's, µs", result["added_cpu_us"], "{:.1f}")
    target("refunds a second", median(refund, "per_second"), at_least=5000)
    target("p99 of refunds, ms", median(refund, "p99_ms"), at_most=30)
    target("replays to refunds", result["replays_to_refunds"][0], at_least=1.5)
    return {"turns": figures, **result}


def cache(path):
    """Has the kernel keep a file in memory: what it has put away meanwhile is the disk's cost. Page by page, as the
    gate's own reads bring it there: of what is read in a row Linux makes large folios, and a page that is
    written has it look through all of its folio."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        while file.read(1 << 20):
            pass


def sizes(bench):
    """Refunds and replays with many records against few; how long a start takes, and what is used."""
    few, many = bench.gate("few"), filled_gate(bench)
    names = {"few": "1,000 records", "many": f"{bench.args.records:,} records"}
    figures = {f"{what}, {name}": [] for what in ("refund", "replay") for name in names.values()}
    starts, killed, rss = [], [], []
    files = {"many": fill(bench, many, bench.args.records), "few": fill(bench, few, 1000)}
    saved = bench.directory / "few-saved"
    shutil.copytree(few.folder, saved)
    size = many.database.stat().st_size / files["many"].count()
    try:
        for turn in range(bench.args.rounds):
            for name, gate in (("few", few), ("many", many)):
                if gate is few:
                    shutil.rmtree(few.folder)
                    shutil.copytree(saved, few.folder)
                cache(gate.database)
                took = gate.start()
                if gate is many:
                    starts.append(took)
                bench.warm_up(gate)
                refund, replay = f"refund, {names[name]}", f"replay, {names[name]}"
                figures[refund].append(bench.turn(gate, refund, bench.fresh))

                def replays(count, of=files[name]):
                    return bench.again(count, lambda: of.number(bench.random))

                figures[replay].append(bench.turn(gate, replay, replays, replays=True))
                if gate is many:
                    rss.append(gate.process.rss_mib())
                    gate.kill()
                    killed.append(gate.start())
                gate.stop()
            say(f"sizes: round {turn + 1} of {bench.args.rounds}")
    finally:
        few.stop()
        many.stop()
    table(f"{bench.args.records:,} finished records against a thousand", figures)
    few_refund, many_refund, few_replay, many_replay = figures.values()
    result = {
        "refund_cpu_ratio": spread(ratios(many_refund, few_refund, "cpu_us")),
        "replay_cpu_ratio": spread(ratios(many_replay, few_replay, "cpu_us")),
        "start_seconds": spread(starts),
        "start_after_kill_seconds": spread(killed),
        "bytes_per_record": size,
        "rss_mib": spread(rss),
    }
    line("bytes a record", [size] * 3, "{:.0f}")
    line("start after a clean stop, s", result["start_seconds"])
    line("start after a kill -9 under load, s", result["start_after_kill_seconds"])
    target("CPU of a refund, to that with a thousand", result["refund_cpu_ratio"][0], at_most=1.3)
    target("CPU of a replay, to that with a thousand", result["replay_cpu_ratio"][0], at_most=1.3)
    target("start, s", max(starts + killed), at_most=2)
    target("memory after load, MiB", max(rss), at_most=64)
    return {"turns": figures, **result}


def expiry(bench):
    """p99 while many records are forgotten, against the minute before the gate begins with it."""
    gate = filled_gate(bench)
    filled = fill(bench, gate, bench.args.records)
    expired = filled.expire(bench.args.expire)
    figures = {"refund, before": [], "refund, meanwhile": []}
    took = None

    def sweeping():
        before = gate.count("tikigate_ledger_records", 'state="done"')
        time.sleep(0.3)
        return gate.count("tikigate_ledger_records", 'state="done"') < before

    try:
        gate.start()
        ready = time.monotonic()
        bench.warm_up(gate)
        while time.monotonic() - ready < SWEEP_EVERY - 2 * bench.args.seconds - 3:
            figures["refund, before"].append(bench.turn(gate, "refund", bench.fresh))
        while not sweeping() and time.monotonic() - ready < 2 * SWEEP_EVERY:
            pass
        began = time.monotonic()
        while time.monotonic() - began < bench.args.patience:
            figure = bench.turn(gate, "refund", bench.fresh)
            if not sweeping():
                took = time.monotonic() - began
                break
            figures["refund, meanwhile"].append(figure)
            say(f"expiry: {time.monotonic() - began:.0f} s, p99 {figure['p99_ms']:.1f} ms")
        rss = gate.process.rss_mib()
    finally:
        gate.stop()
    left = filled.expired()
    table(f"{expired:,} of {bench.args.records:,} records expire", figures)
    if not figures["refund, meanwhile"]:
        say("expiry was over within one turn: give more with --expire, or shorter ones with --seconds")
        return {"turns": figures, "left": left}
    before, meanwhile = (median(figures[name], "p99_ms") for name in figures)
    show(f"  forgotten: {expired - left:,} in {took or bench.args.patience:.0f} s; RSS {rss:.1f} MiB")
    target("expired records that are left", left, at_most=0)
    target("p99 meanwhile, to that before", meanwhile / before, at_most=2)
    return {"turns": figures, "p99_ratio": meanwhile / before, "seconds": took, "left": left}


def filled_gate(bench):
    gate = bench.gate("many")
    if bench.args.filled:
        gate.folder = pathlib.Path(bench.args.filled)
        gate.folder.mkdir(parents=True, exist_ok=True)
        gate.database = gate.folder / "tikigate.db"
    return gate


def fill(bench, gate, wanted):
    filled = Filled(gate.folder)
    if filled.count() >= wanted:
        return filled
    gate.start()
    if not filled.ranges:
        send(gate.process.port, next(bench.fresh(1)))
    gate.stop()
    filled.fill(wanted, say)
    return filled


def ratios(ours, theirs, key):
    return [one[key] / other[key] for one, other in zip(ours, theirs)]


def spread(values):
    """Median, least, most."""
    return [statistics.median(values), min(values), max(values)]


def median(figures, key):
    return statistics.median(figure[key] for figure in figures)


def table(title, figures):
    columns = (("per_second", "a second", "{:.0f}"), ("p50_ms", "p50 ms", "{:.1f}"), ("p99_ms", "p99 ms", "{:.1f}"),
               ("cpu_us", "CPU µs", "{:.0f}"), ("writer_us", "of it ledger", "{:.0f}"), ("rss_mib", "RSS MiB", "{:.0f}"),
               ("odd", "odd", "{:.0f}"), ("others", "others", "{:.0%}"))
    show(f"\n{title}; medians of {max(map(len, figures.values()))} rounds (min-max)")
    show("  " + " " * 28 + "".join(f"{name:>20}" for _, name, _ in columns))
    for name, turns in figures.items():
        cells = ""
        for key, _, form in columns:
            if turns:
                middle, least, most = (form.format(value) for value in spread([turn[key] for turn in turns]))
                cells += f"{middle} ({least}-{most})".rjust(20)
        show(f"  {name:28}{cells}")


def line(name, values, form="{:.2f}"):
    middle, least, most = map(form.format, values)
    show(f"  {name}: {middle}" + (f" ({least}-{most})" if least != most else ""))


def target(name, value, at_least=None, at_most=None):
    wanted = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    met = value >= at_least if at_least is not None else value <= at_most
    show(f"  {'met   ' if met else 'MISSED'} {name}: {value:.2f}, {wanted}")


PARTS = {"refunds": refunds, "sizes": sizes, "expiry": expiry}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each turn")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=CORES, help="the gate's")
    parser.add_argument("--size", type=int, default=300, help="bytes of a body")
    parser.add_argument("--calls", type=int, default=0, help="calls prepared for each turn; left out: by the rate so far")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--expire", type=int, default=1_000_000)
    parser.add_argument("--patience", type=int, default=900, help="seconds that expiry may take")
    parser.add_argument("--directory", help="where the ledgers lie, on a real disk; left out: below target/")
    parser.add_argument("--filled", help="a folder that keeps the filled file for the next run")
    parser.add_argument("--json", action="store_true", help="all figures on standard output, the tables on standard error")
    args = parser.parse_args()
    parts = [part.strip() for part in args.only.split(",")]
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}; there are {', '.join(PARTS)}")
    prepare("wrk", "nginx")

    directory = pathlib.Path(tempfile.mkdtemp(prefix="ledger-bench-", dir=args.directory or REPO / "target"))
    backend = nginx(directory, free_port())
    show.to = sys.stderr if args.json else sys.stdout
    results = {"arguments": vars(args), "load_before": os.getloadavg()}
    try:
        bench = Bench(directory, backend, args)
        for part in parts:
            results[part] = PARTS[part](bench)
    finally:
        backend.stop()
        shutil.rmtree(directory, ignore_errors=True)
    results["load_after"] = os.getloadavg()
    show(f"\nload average before {results['load_before'][0]:.1f}, after {results['load_after'][0]:.1f}, {CORES} cores")
    if args.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
