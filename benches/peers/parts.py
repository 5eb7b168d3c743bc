"""The parts of the comparison. Each takes a directory and the arguments and returns its figures as plain data."""

import contextlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time

import proxies
from cgroup import Quota
from common import BINARY, MEMORY, REPO, SQLITE, answer_to, connect, free_port, head, load, nginx, request, say, send_all, trusting, write_calls

# Numbers of messages, over the whole run.
NUMBERS = itertools.count(1)
# From this many bytes on calls share a body.
LARGE = 32 * 1024
UNKNOWN = "nobody-is-configured-with-this-1"


class Target:
    """A proxy and the calls that are sent to it."""

    def __init__(self, name, process, path="/any", size=300, connections=64, tls=False, status=200, **calls):
        self.name, self.process, self.path, self.size = name, process, path, size
        self.connections, self.tls, self.status = connections, tls, status
        # How its calls differ: forged, of an unknown client, or one and the same.
        self.repeat = calls.pop("repeat", False)
        self.calls = calls
        self.rate = 0
        self.figures = []

    def look(self):
        """Sees that a call is answered as it should be: wrk only tells good from bad."""
        call = request(self.path, next(NUMBERS), min(self.size, 4096), **self.calls)
        status = answer_to(self.process.port, call, trusting() if self.tls else None)
        if status != self.status:
            sys.exit(f"{self.name}: a call was answered {status}, and {self.status} is right")

    def kind(self):
        """Targets of one kind are sent the same calls in a round."""
        return self.path, self.size, self.repeat, tuple(self.calls.items())


class Calls:
    """The signed calls of one round, made once for all targets that want the same."""

    def __init__(self, directory, seconds):
        self.directory, self.seconds, self.made = directory, seconds, {}
        self.names = itertools.count()

    def of(self, target):
        wanted = int((target.rate or (100_000 if target.size < LARGE else 20_000)) * 1.6 * self.seconds) + 2_000
        file, count = self.made.get(target.kind(), (None, 0))
        if count < wanted:
            # A name of its own also when a kind's are made anew, more of them.
            file = self.directory / f"calls-{next(self.names)}"
            if target.size < LARGE:
                write_calls(file, self.texts(target, wanted))
            else:
                self.write_large(file, target, wanted)
            self.made[target.kind()] = file, wanted
        return file

    def texts(self, target, wanted):
        make = lambda: request(target.path, next(NUMBERS), target.size, **target.calls)
        return itertools.repeat(make(), wanted) if target.repeat else (make() for _ in range(wanted))

    def write_large(self, file, target, wanted):
        """Calls that have one body and differ by the time of their signature: gigabytes would come from the disk."""
        body = b"x" * target.size
        now = int(time.time() * 1000)
        # Within the time window, which is minutes.
        times = (now - place for place in range(wanted))
        write_calls(file, (head(target.path, body, at) for at in times), body)


def turn(target, file, seconds):
    """One measured load."""
    before = target.process.cpu_seconds()
    seen = load(target.name, file, target.process.port, seconds, target.connections, target.tls)
    used = target.process.cpu_seconds() - before
    answered = seen["answered"]
    target.rate = max(target.rate, seen["per_second"])
    return {
        "answered": answered,
        "cpu_us": used * 1e6 / answered,
        "per_second": seen["per_second"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "rss_mib": target.process.rss_mib(),
        "failures": (seen["refused"] if target.status == 200 else answered - seen["refused"]) + seen["broken"],
    }


def rounds(targets, directory, args, choose=True):
    """All targets in turn, as often as wanted."""
    if args.targets and choose:
        chosen = [target for target in targets if any(word.lower() in target.name.lower() for word in args.targets)]
        targets[:] = chosen or targets
    folder = directory / "turns"
    folder.mkdir(exist_ok=True)
    for target in targets:
        target.look()
    for number in range(args.rounds + 1):
        calls = Calls(folder, args.seconds)
        for target in targets:
            # So that none is always the first after a pause: the order moves on by one each round.
            figure = turn(target, calls.of(target), args.seconds if number else 1)
            # The first round warms caches, pools and the estimate of how many calls a turn takes.
            if number:
                target.figures.append(figure)
        targets.append(targets.pop(0))
        say(f"  round {number} of {args.rounds}" if number else "  warmed up")
    for file in folder.iterdir():
        file.unlink()


def summary(targets, order):
    """For each target the medians of its figures, and its ratios to the two references of the same rounds."""
    references = {"haproxy": "HAProxy, checking", "nginx": "nginx, passing"}
    by_name = {target.name: target for target in targets}
    rows = []
    for target in sorted(targets, key=lambda target: order.index(target.name)):
        row = {"target": target.name, "size": target.size, "connections": target.connections, "rounds": target.figures}
        for key in target.figures[0]:
            row[key] = spread([figure[key] for figure in target.figures])
        for short, prefix in references.items():
            like = (prefix, target.size, target.connections, target.tls)
            base = next((other for other in by_name.values() if other.name.startswith(prefix)
                         and (prefix, other.size, other.connections, other.tls) == like), None)
            for key, name in (("cpu_us", short), ("p99_ms", f"{short}_p99")):
                row[name] = base and spread([ours[key] / theirs[key] for ours, theirs in zip(target.figures, base.figures)])
        rows.append(row)
    return rows


def spread(values):
    """Median, least, most."""
    return [statistics.median(values), min(values), max(values)]


@contextlib.contextmanager
def running():
    """Processes that end with the block."""
    started = []
    try:
        yield lambda process: started.append(process) or process
    finally:
        for process in reversed(started):
            process.stop()


def measured(targets, directory, args):
    order = [target.name for target in targets]
    rounds(targets, directory, args)
    return summary(targets, order)


def targets(directory, args):
    """300 B bodies, 64 connections, plain."""
    import install

    with running() as start:
        backend = start(nginx(directory, free_port())).port
        gate = start(proxies.gate(directory / "gate", backend, SQLITE))
        return measured(
            [
                Target("HAProxy, checking", start(proxies.haproxy(directory, backend))),
                Target("nginx, passing through", start(proxies.nginx_passing(directory, backend))),
                Target("nginx with njs, checking", start(proxies.nginx_njs(directory, backend))),
                Target("Envoy, passing through", start(proxies.envoy(install.envoy(), directory, backend))),
                Target("tikigate, verify only", gate),
                Target("tikigate, IPN, SQLite", gate, "/ipn"),
                Target("tikigate, refund, reused connections", gate, "/reused/refund"),
                Target("tikigate, refund", gate, "/refund"),
                Target("tikigate, replay", gate, "/refund", repeat=True),
                Target("tikigate, forged signature", gate, status=401, forge=True),
                Target("tikigate, unknown client", gate, status=401, client=UNKNOWN),
            ],
            directory,
            args,
        )


# Plain proxies: how they are called here, what they are (benches/plain), and how their calls differ.
PLAIN = (
    ("system calls", ("bare",), {}),
    ("HTTP", ("hyper",), {}),
    ("HTTP, forged", ("hyper",), {"status": 401, "forge": True}),
    ("HTTP, appended once", ("hyper", 1, "log"), {}),
    ("HTTP, appended twice", ("hyper", 2, "log"), {}),
    ("HTTP, SQLite twice", ("hyper", 2, "db"), {}),
    ("HTTP, fresh connections", ("fresh",), {}),
    ("HTTP, fresh connections, SQLite twice", ("fresh", 2, "db"), {}),
)


def plain(directory, args):
    """What of a call's cost is the machine's and the libraries'."""
    import install

    install.plain()
    with running() as start:
        backend = start(nginx(directory, free_port())).port
        found = [
            Target("HAProxy, checking", start(proxies.haproxy(directory, backend))),
            Target("nginx, passing through", start(proxies.nginx_passing(directory, backend))),
        ]
        found += [Target(f"plain: {name}", start(proxies.plain(directory, backend, *what)), **calls) for name, what, calls in PLAIN]
        for name, size, buffer in (("4 KiB", 4096, 16384), ("64 KiB", 65536, proxies.LARGE_BUFFER)):
            found += [
                Target(f"HAProxy, checking, {name}", start(proxies.haproxy(directory, backend, buffer=buffer)), size=size),
                Target(f"nginx, passing through, {name}", start(proxies.nginx_passing(directory, backend)), size=size),
                Target(f"plain: HTTP, {name}", start(proxies.plain(directory, backend, "hyper")), size=size),
            ]
        return measured(found, directory, args)


def three(start, directory, backend, name, tls=None, buffer=16384, **kind):
    """HAProxy, nginx and the gate with the same kind of calls."""
    folder = directory / f"gate-{name}"
    kind["tls"] = tls is not None
    return [
        Target(f"HAProxy, checking, {name}", start(proxies.haproxy(directory, backend, tls, buffer)), **kind),
        Target(f"nginx, passing through, {name}", start(proxies.nginx_passing(directory, backend, tls)), **kind),
        Target(f"tikigate, verify only, {name}", start(proxies.gate(folder, backend, MEMORY, tls)), **kind),
    ]


def bodies(directory, args):
    with running() as start:
        backend = start(nginx(directory, free_port())).port
        small = three(start, directory, backend, "4 KiB", size=4096)
        large = three(start, directory, backend, "64 KiB", buffer=proxies.LARGE_BUFFER, size=65536)
        return measured(small + large, directory, args)


def connections(directory, args):
    with running() as start:
        backend = start(nginx(directory, free_port())).port
        one = three(start, directory, backend, "1 connection", connections=1)
        many = three(start, directory, backend, "512 connections", connections=512)
        return measured(one + many, directory, args)


def tls(directory, args):
    with running() as start:
        backend = start(nginx(directory, free_port())).port
        certificate = proxies.Certificate(directory)
        return measured(three(start, directory, backend, "TLS", tls=certificate), directory, args)


def workers(directory, args):
    """Requests a second of a gate whose workers may each use a fifth of a core, and CPU time without that bound."""
    with running() as start:
        backend = start(nginx(directory, free_port())).port
        gates = {count: start(proxies.gate(directory / f"gate-{count}", backend, MEMORY, workers=count)) for count in (1, 2)}
        free = [Target(f"{count} workers", gate) for count, gate in gates.items()]
        rounds(free, directory, args, choose=False)
        with contextlib.ExitStack() as bounds:
            for gate in gates.values():
                threads = gate.threads("worker-")
                for number, thread in enumerate(threads):
                    bounds.enter_context(Quota(f"{gate.port}-{number}", [thread], share=0.2))
            bound = [Target(f"{count} workers, bounded", gate) for count, gate in gates.items()]
            rounds(bound, directory, args, choose=False)
    named = {target.name: target.figures for target in free + bound}

    def to_one(key, kind=""):
        return spread([two[key] / one[key] for one, two in zip(named["1 workers" + kind], named["2 workers" + kind])])

    return {"bounded_per_second": to_one("per_second", ", bounded"), "cpu_us": to_one("cpu_us"), "turns": named}


def memory(directory, args):
    """Resident memory: fresh, with 64 connections after many requests, and for each idle connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < args.idle + 100:
        sys.exit(f"this needs {args.idle + 100} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    result = {"requests": args.million, "connections": args.idle}
    with running() as start:
        backend = start(nginx(directory, free_port())).port
        # Each is remembered: a few more than there are.
        gate = start(proxies.gate(directory / "gate-memory", backend, MEMORY, remembered=2 * args.million))
        result["fresh_mib"] = gate.rss_mib()
        target = Target("memory", gate)
        done = 0
        seconds = 1
        while seconds:
            calls = Calls(directory, seconds)
            figure = turn(target, calls.of(target), seconds)
            done += figure["answered"]
            say(f"  {done:,} requests, {figure['rss_mib']:.1f} MiB")
            seconds = min(5, int((args.million - done) / target.rate))
        # Each is remembered: not more than are wanted.
        send_all(gate.port, calls.texts(target, args.million - done))
        result["after_mib"] = gate.rss_mib()
        certificate = proxies.Certificate(directory)
        for name, tls, by in (("idle_kib", None, None), ("idle_tls_kib", certificate, trusting())):
            more = 'max_connections = 100000\nidle_timeout = "3600s"'
            gate = start(proxies.gate(directory / name, backend, MEMORY, tls, more=more))
            connect(gate.port, by).close()
            before = gate.rss_mib()
            held = [connect(gate.port, by) for _ in range(args.idle)]
            time.sleep(1)
            result[name] = (gate.rss_mib() - before) * 1024 / args.idle
            gate.stop()
            for connection in held:
                connection.close()
    return result


def records(directory, args):
    """What benches/ledger says of many records against few."""
    command = [sys.executable, str(REPO / "benches/ledger/run.py"), "--only", "sizes", "--json"]
    command += ["--records", str(args.records), "--rounds", str(args.rounds), "--seconds", str(args.seconds), "--workers", "1"]
    if args.filled:
        command += ["--filled", args.filled]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["sizes"]


def path(directory, args):
    """What benches/path counts, and the same of a plain proxy."""
    command = [sys.executable, str(REPO / "benches/path/run.py"), "--json"]
    counted, plain_one = (json.loads(subprocess.run(which, check=True, stdout=subprocess.PIPE).stdout) for which in (command, [*command, "--plain"]))
    return {**counted, "plain_instructions": plain_one["instructions"], "plain_allocations": plain_one["allocations"]}


def binary(directory, args):
    return {"bytes": BINARY.stat().st_size}


PARTS = {
    "targets": targets,
    "plain": plain,
    "bodies": bodies,
    "connections": connections,
    "tls": tls,
    "workers": workers,
    "memory": memory,
    "records": records,
    "path": path,
    "binary": binary,
}
