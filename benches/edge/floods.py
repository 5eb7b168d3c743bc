#!/usr/bin/env python3
"""What refusals cost, what a well-behaved caller feels of floods, and what connections hold in memory.

    benches/edge/floods.py                      all of it, of a release build
    benches/edge/floods.py --only refusals --rounds 9
    benches/edge/floods.py --only floods --seconds 10
    benches/edge/floods.py --only memory --connections 10000

Refusals: CPU time of the gate for each request, in turns over several rounds, as a ratio to that of a call
that is verified and forwarded in the same round. Floods: the 99th percentile of a caller that sends fifty
calls a second on a kept connection and fifty on new ones, alone and under each flood, measured from when
a call was due. Memory: what the gate holds for so many connections of a kind, by connection.

Needs Debian's wrk, nginx and openssl. Everything listens on loopback and stops with the script.
"""

import argparse
import asyncio
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import BINARY, CLIENT, MEMORY, SECRET, Process, free_port, load, prepare, nginx, request, tikigate, trusting, write_calls

CALLER = "127.0.0.77"


# ---- refusals

def unknown(call):
    return call.replace(CLIENT.encode(), b"nobody" + CLIENT[6:].encode())


def unsigned(call):
    lines = call.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.startswith(b"X-Tikivip"))


class Kind:
    """A kind of call, and what becomes of it."""

    def __init__(self, name, gate, status, change=lambda call: call, forge=False, target=None):
        self.name, self.gate, self.status, self.change, self.forge = name, gate, status, change, forge
        self.target, self.figures = target, []


def refusals(directory, args):
    running = []
    try:
        backend = nginx(directory, free_port())
        running.append(backend)
        gate = tikigate(directory / "gate", free_port(), backend.port, MEMORY)
        running.append(gate)
        strict = start_gate(directory / "strict", backend.port, "per_address = { per_second = 1, burst = 1 }")
        running.append(strict)
        kinds = [
            Kind("forwarded", gate, 200),
            Kind("forged signature", gate, 401, forge=True, target=0.6),
            Kind("unknown client", gate, 401, unknown, target=0.35),
            Kind("no signature", gate, 401, unsigned, target=0.35),
            Kind("over its address's rate", strict, 503),
        ]
        count, number = args.seconds * 120_000, 1
        for turn in range(args.rounds):
            for kind in kinds:
                calls = directory / "calls"
                texts = (kind.change(request("/any", number + at, args.size, kind.forge)) for at in range(count))
                write_calls(calls, texts)
                number += count
                before = kind.gate.cpu_seconds()
                seen = load(kind.name, calls, kind.gate.port, args.seconds, args.connections)
                used = kind.gate.cpu_seconds() - before
                expected = 0 if kind.status == 200 else seen["answered"]
                odd = abs(seen["refused"] - expected) + seen["broken"]
                kind.figures.append((used * 1e6 / seen["answered"], seen["per_second"], odd))
            print(f"refusals: round {turn + 1} of {args.rounds}", file=sys.stderr)
    finally:
        for process in running:
            process.stop()
    print(f"refusals: {args.size} B bodies, {args.connections} connections, one worker, medians of {args.rounds} rounds")
    print(f"{'':26} {'CPU µs':>8} {'ratio':>6} {'(min-max)':>12} {'target':>7} {'req/s':>8} {'odd':>5}")
    for kind in kinds:
        base = kinds[0].figures
        ratios = sorted(one[0] / reference[0] for one, reference in zip(kind.figures, base))
        middle = [statistics.median(figure[at] for figure in kind.figures) for at in range(3)]
        spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
        target = f"{kind.target:.2f}" if kind.target else ""
        print(f"{kind.name:26} {middle[0]:8.1f} {statistics.median(ratios):6.2f} {spread:>12} {target:>7} "
              f"{middle[1]:8.0f} {middle[2]:5.0f}")


def start_gate(folder, backend, server="", tls=False):
    """A gate with the limits that it has by default, but for the lines given."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    section = ""
    if tls:
        key, certificate = folder / "tls.key", folder / "tls.crt"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
             "-out", certificate, "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            check=True, capture_output=True)
        section = '[server.tls]\ncertificate = "tls.crt"\nprivate_key = "tls.key"\n'
    config = folder / "tikigate.toml"
    config.write_text(f"""[server]
listen = "127.0.0.1:{port}"
workers = 2
drain_delay = "0s"
{server}
{section}
[admin]
listen = "127.0.0.1:{free_port()}"
[upstreams.legacy]
url = "http://127.0.0.1:{backend}"
[[clients]]
id = "{CLIENT}"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 100000, burst = 100000 }}
[[routes]]
name = "any"
path = "/any"
payload = "any"
[[routes]]
name = "ipn"
path = "/ipn"
payload = "transaction_ipn"
[ledger]
store = "memory"
""")
    return Process([str(BINARY), "serve", "--config", str(config)], port, folder / "log")


# ---- floods

async def read_answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    await reader.readexactly(int(lengths[0]))
    return int(head.split()[1])


async def caller(port, seconds):
    """Calls for so long; how long each call took and what was not answered 200."""
    took, faults, calls = [], [], []
    began, every = time.monotonic(), 0.02
    numbers = iter(range(int(time.time() * 1e6), 1 << 62))

    async def one(due, streams):
        try:
            new = streams or await asyncio.open_connection("127.0.0.1", port, local_addr=(CALLER, 0))
            new[1].write(request("/ipn", next(numbers), 300))
            status = await asyncio.wait_for(read_answer(new[0]), 10)
            took.append(time.monotonic() - due) if status == 200 else faults.append(status)
            if not streams:
                new[1].close()
        except Exception as fault:
            faults.append(repr(fault))

    async def kept():
        streams = await asyncio.open_connection("127.0.0.1", port, local_addr=(CALLER, 0))
        for tick in range(int(seconds / every)):
            due = began + tick * every
            await asyncio.sleep(max(0, due - time.monotonic()))
            await one(due, streams)
        streams[1].close()

    async def anew():
        for tick in range(int(seconds / every)):
            due = began + (tick + 0.5) * every
            await asyncio.sleep(max(0, due - time.monotonic()))
            calls.append(asyncio.create_task(one(due, None)))
        await asyncio.gather(*calls)

    await asyncio.gather(kept(), anew())
    return took, faults


def p99(took):
    return sorted(took)[max(0, -(-len(took) * 99 // 100) - 1)] * 1000 if took else float("nan")


class Crowd:
    """Very many connections from many addresses, in a process of its own."""

    def __init__(self, port, at_once, addresses, manner):
        self.process = multiprocessing.Process(target=crowd, args=(port, at_once, addresses, manner), daemon=True)
        self.process.start()

    def end(self):
        self.process.terminate()
        self.process.join()


def crowd(port, at_once, addresses, manner):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(10)
    raise_files()
    asyncio.run(press(port, at_once, addresses, manner))


async def press(port, at_once, addresses, manner):
    opening = asyncio.Semaphore(256)
    counter = iter(range(1 << 62))

    async def member():
        while True:
            number = next(counter) % addresses
            address = f"127.1.{number // 200}.{number % 200 + 1}"
            try:
                async with opening:
                    streams = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0), limit=1024)
                await manner(*streams)
                streams[1].transport.abort()
            except OSError:
                pass
            await asyncio.sleep(0.1)

    await asyncio.gather(*(member() for _ in range(at_once)))


async def silent(reader, _):
    await reader.read()


async def slow_head(reader, writer):
    for byte in unsigned(request("/ipn", 1, 300)):
        writer.write(bytes([byte]))
        await asyncio.sleep(0.3)
        if reader.at_eof():
            return


async def slow_body(reader, writer, pace=10):
    call = request("/ipn", 1, 60_000, forge=True)
    head = call.index(b"\r\n\r\n") + 4
    writer.write(call[:head])
    for at in range(head, len(call), pace):
        writer.write(call[at:at + pace])
        await asyncio.sleep(0.5)
        if reader.at_eof():
            return


async def steady_body(reader, writer):
    await slow_body(reader, writer, 150)


async def garbage(reader, writer):
    writer.write(os.urandom(2000))
    await reader.read()


async def not_reading(_, writer):
    call = request("/ipn", 1, 300, forge=True)
    while True:
        writer.write(call * 8)
        await writer.drain()


class Wrk:
    """Calls at full speed, the same again and again but for the address that a proxy would tell."""

    def __init__(self, port, directory, call, addresses):
        head, body = call.split(b"\r\n\r\n", 1)
        script = directory / "flood.lua"
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
        text = f"wrk.method = 'POST'\nwrk.body = '{body.decode()}'\n"
        text += "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in lines)
        if addresses > 1:
            text += f"""local n = 0
function request()
  n = (n + 1) % {addresses}
  wrk.headers['X-Forwarded-For'] = string.format('10.%d.%d.%d', math.floor(n / 65536), math.floor(n / 256) % 256, n % 256)
  return wrk.format()
end
"""
        script.write_text(text)
        self.process = subprocess.Popen(
            ["nice", "-n10", "wrk", "-t1", "-c64", "-d3600s", "-s", str(script), f"http://127.0.0.1:{port}/ipn"],
            stdout=subprocess.DEVNULL)

    def end(self):
        self.process.terminate()
        self.process.wait()


def floods(directory, args):
    def wrk(change, addresses, forge=False):
        return lambda port: Wrk(port, directory, change(request("/ipn", 1, 300, forge)), addresses)

    def by(at_once, addresses, manner):
        return lambda port: Crowd(port, at_once, addresses, manner)

    kinds = [
        ("nothing", None, None),
        ("silent, one address", by(8000, 1, silent), False),
        ("silent, many addresses", by(12_000, 400, silent), False),
        ("slow heads", by(12_000, 400, slow_head), False),
        ("slow bodies, too slow", by(3000, 100, slow_body), False),
        ("slow bodies, fast enough", by(3000, 100, steady_body), False),
        ("answers not read", by(400, 20, not_reading), False),
        ("garbage", by(200, 50, garbage), False),
        ("forged, many addresses", wrk(lambda call: call, 1 << 20, True), True),
        ("forged, one address", wrk(lambda call: call, 1, True), True),
        ("unknown client", wrk(unknown, 1 << 20), True),
        ("unsigned", wrk(unsigned, 1 << 20), True),
    ]
    backend = nginx(directory, free_port())
    print(f"floods: default limits, two workers, {args.seconds} s each, medians of {args.rounds} rounds")
    print(f"{'':26} {'alone ms':>9} {'under ms':>9} {'ratio':>6} {'(min-max)':>12} {'faults':>7} {'RSS MiB':>8}")
    try:
        for name, weapon, proxied in kinds:
            if args.flood and args.flood not in name:
                continue
            figures, faults, rss = [], [], 0
            for _ in range(args.rounds):
                trusted = 'trusted_proxies = ["127.0.0.1/32"]' if proxied else ""
                gate = start_gate(directory / "flooded", backend.port, trusted)
                try:
                    asyncio.run(caller(gate.port, 1))
                    alone, _ = asyncio.run(caller(gate.port, args.seconds))
                    flood = weapon(gate.port) if weapon else None
                    under, broken = asyncio.run(caller(gate.port, args.seconds))
                    rss = max(rss, gate.rss_mib())
                    if flood:
                        flood.end()
                    figures.append((p99(alone), p99(under)))
                    faults += broken
                finally:
                    gate.stop()
            alone, under = (statistics.median(figure[at] for figure in figures) for at in range(2))
            ratios = sorted(under / alone for alone, under in figures)
            spread = f"{ratios[0]:.1f}-{ratios[-1]:.1f}"
            print(f"{name:26} {alone:9.1f} {under:9.1f} {statistics.median(ratios):6.1f} {spread:>12} {len(faults):7} "
                  f"{rss:8.0f}  {faults[:2] if faults else ''}", flush=True)
    finally:
        backend.stop()


# ---- memory

def hold(port, count, first=b"", then=None, answer=False, tls=None):
    """So many connections, each with this much sent on it, spread over addresses so that no share is exceeded."""
    held = []
    for number in range(count):
        plain = socket.socket()
        plain.bind((f"127.2.{number // 25 // 250}.{number // 25 % 250 + 1}", 0))
        plain.connect(("127.0.0.1", port))
        plain.settimeout(10)
        one = tls.wrap_socket(plain, server_hostname="localhost") if tls else plain
        if first:
            one.sendall(first)
        if answer:
            one.recv(4096)
        held.append(one)
    return held


def memory(directory, args):
    raise_files()
    sink = nginx(directory, free_port())
    silent_backend = socket.socket()
    silent_backend.bind(("127.0.0.1", 0))
    silent_backend.listen(4096)
    body = request("/ipn", 1, 65_000, forge=True)
    filler = b"GET / HTTP/1.1\r\nHost: x\r\nX-Filler: " + b"x" * 16_300
    trust = trusting()
    cases = [
        ("silent", dict(), False),
        ("a head, all but its end", dict(first=filler), False),
        ("idle after a forged call of 300 B", dict(first=request("/ipn", 1, 300, forge=True), answer=True), False),
        ("idle after a forged call of 64 KiB", dict(first=body, answer=True), False),
        ("a body of 64 KiB, all but its end", dict(first=body[:-1]), False),
        ("TLS, silent", dict(), True),
        ("TLS, idle after a call of 64 KiB", dict(first=body, answer=True), True),
        ("TLS, a head, all but its end", dict(first=filler), True),
    ]
    print(f"memory: {args.held} connections of a kind")
    print(f"{'':36} {'before MiB':>10} {'with MiB':>9} {'KiB each':>9} {'open':>6}")
    try:
        for name, how, tls in cases:
            count = args.held if "all but its end" not in name or "head" in name else min(args.held, 700)
            gate = start_gate(directory / ("tls" if tls else "plain"), sink.port,
                              'header_timeout = "60s"\nbody_timeout = "60s"\nmax_connections = 20000\n'
                              'per_address = { per_second = 100000, burst = 100000 }', tls)
            try:
                before = gate.rss_mib()
                held = hold(gate.port, count, tls=trust if tls else None, **how)
                time.sleep(1)
                after = gate.rss_mib()
                print(f"{name:36} {before:10.1f} {after:9.1f} {(after - before) * 1024 / count:9.1f} {count:6}", flush=True)
                for one in held:
                    one.close()
            finally:
                gate.stop()
    finally:
        sink.stop()


def raise_files():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["refusals", "floods", "memory"])
    parser.add_argument("--flood", default="", help="floods with this in their name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64, help="wrk's, for refusals")
    parser.add_argument("--size", type=int, default=300, help="bytes of a body, for refusals")
    parser.add_argument("--held", type=int, default=5000, help="connections, for memory")
    args = parser.parse_args()
    prepare("wrk", "nginx", "openssl")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tikigate-floods-"))
    try:
        for name, part in [("refusals", refusals), ("floods", floods), ("memory", memory)]:
            if args.only in (None, name):
                part(directory, args)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
