#!/usr/bin/env python3
"""Speed of the outbound direction: what signing adds to a call, notices accepted, a backlog drained.

    benches/outbound/run.py                          all of it
    benches/outbound/run.py --only direct --rounds 9 one part of it
    benches/outbound/run.py --backlog 20000          a quick look

The parts:
  direct   one GET after the other by curl with keep-alive: to the stand-in for Tiki over TLS (one signed
           call, again and again), and through the gate, which signs each; in turns
  accept   notices posted by wrk over 64 connections while Tiki is away: each is durable before its 202
  drain    --backlog notices delivered once Tiki is back: how long, how much memory

The stand-in for Tiki (`tikigate fake-tiki`), curl, wrk and the gate share the machine. Figures are medians of
the rounds, with the least and the most.

Needs Debian's wrk, curl and openssl, and a release build. Everything listens on loopback and stops with the
script.
"""

import argparse
import base64
import hashlib
import hmac
import http.client
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import BINARY, CLIENT, SECRET, Process, free_port, load, prepare, tikigate, write_calls

BASE = "/miniapp/tikivip"
SQLITE = """store = "sqlite"
path = "tikigate.db"
"""


def show(text):
    print(text, flush=True)


def outbound(port, base_url, ca=None, deliveries=64):
    """The text of [outbound], behind that of [ledger]."""
    return f"""[outbound]
listen = "127.0.0.1:{port}"
{f'ca = "{ca}"' if ca else ""}
rate = {{ per_second = 1000000, burst = 1000000 }}
max_deliveries = {deliveries}
max_in_flight = 1024
max_bytes = "4GiB"
longest_pause = "1s"
[[outbound.accounts]]
client = "{CLIENT}"
base_url = "{base_url}"
"""


def fake_tiki(folder, port, *more):
    secret = folder / "tiki.secret"
    secret.write_text(SECRET)
    command = [str(BINARY), "fake-tiki", "--listen", f"127.0.0.1:{port}", "--client", f"{CLIENT}={secret}",
               "--auto-create", *more]
    return Process(command, port, folder / f"tiki-{port}.log")


def median(values):
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def curl_times(target, count, headers=(), ca=None):
    """Milliseconds of each of so many GETs over one connection, but for the first."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{time_total} %{http_code}\n"]
    for header in headers:
        command += ["-H", header]
    if ca:
        command += ["--cacert", str(ca)]
    # curl's own numbering would change what is signed: the same URL so many times.
    config = "\n".join([f'url = "{target}"\noutput = "/dev/null"'] * count)
    run = subprocess.run([*command, "-K", "-"], input=config, capture_output=True, text=True, check=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    bad = [code for _, code in lines if code != "200"]
    if bad or len(lines) != count:
        sys.exit(f"{target}: {len(lines)} answers, {len(bad)} of them not 200")
    return [float(seconds) * 1000 for seconds, _ in lines[1:]]


def direct(directory, args):
    folder = directory / "direct"
    folder.mkdir()
    ca, key = folder / "ca.crt", folder / "ca.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", ca, "-days",
                    "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-addext", "basicConstraints=critical,CA:FALSE"],
                   check=True, capture_output=True)
    tiki_port, port = free_port(), free_port()
    tiki = fake_tiki(folder, tiki_port, "--certificate", str(ca), "--private-key", str(key))
    base_url = f"https://127.0.0.1:{tiki_port}{BASE}"
    gate = tikigate(folder / "gate", free_port(), free_port(), SQLITE + outbound(port, base_url, ca))
    target = "/something?tiki_transaction_id=T-1"
    plain, through = [], []
    try:
        for _ in range(args.rounds):
            timestamp = str(int(time.time() * 1000))
            encoded = base64.urlsafe_b64encode(f"{timestamp}.{CLIENT}.{target}".encode()).rstrip(b"=")
            mac = hmac.new(SECRET.encode(), encoded, hashlib.sha256).hexdigest()
            headers = [f"X-Tikivip-Timestamp: {timestamp}", f"X-Tikivip-Client-Id: {CLIENT}",
                       f"X-Tikivip-Signature: {mac}"]
            plain.append(statistics.median(curl_times(base_url + target, args.calls, headers, ca)))
            through.append(statistics.median(curl_times(f"http://127.0.0.1:{port}{target}", args.calls)))
    finally:
        gate.stop()
        tiki.stop()
    added = [with_gate - without for with_gate, without in zip(through, plain)]
    show(f"direct: a GET by curl to Tiki over TLS, median ms: {median(plain)}")
    show(f"direct: the same through the gate, which signs it:  {median(through)}")
    show(f"direct: added by the gate, ms (wanted: at most 0.3): {median(added)}")


def notices(first, count):
    for number in range(first, first + count):
        body = (f'{{"tiki_transaction_id":"221115TIKIVIP-{number}","transaction_amount":150000,'
                f'"transaction_id":"8A43B011-0EC9-4AA5-8D83-{number}","status":"SUCCESS",'
                f'"partner_banking_method":"ATM"}}').encode()
        yield (f"POST /payment/ipn HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n"
               f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def metric(admin, name):
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^{name} (\S+)$", text, re.M)
    return float(found.group(1)) if found else None


def peak_mib(process):
    status = pathlib.Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


def accept(directory, args):
    rates, cpus, p99s = [], [], []
    for number in range(args.rounds):
        folder = directory / f"accept-{number}"
        port, admin = free_port(), free_port()
        # Nobody listens there: what is stored stays.
        base_url = f"http://127.0.0.1:{free_port()}{BASE}"
        gate = tikigate(folder, admin, free_port(), SQLITE + outbound(port, base_url))
        try:
            file = folder / "calls"
            write_calls(file, notices(number * 10_000_000, args.seconds * 20_000))
            before = gate.cpu_seconds()
            saw = load("accept", file, port, args.seconds, 64)
            used = gate.cpu_seconds() - before
            stored = metric(admin, "tikigate_outbox_pending")
        finally:
            gate.stop()
        if saw["refused"] or saw["broken"] or stored < saw["answered"]:
            sys.exit(f"accept: {saw}, {stored} stored")
        rates.append(saw["per_second"])
        cpus.append(used * 1e6 / saw["answered"])
        p99s.append(saw["p99_ms"])
    show(f"accept: notices a second, 64 connections (wanted: 3000): {median(rates)}")
    show(f"accept: CPU microseconds each: {median(cpus)}")
    show(f"accept: p99 ms: {median(p99s)}")


def drain(directory, args):
    folder = directory / "drain"
    folder.mkdir()
    port, admin, tiki_port = free_port(), free_port(), free_port()
    base_url = f"http://127.0.0.1:{tiki_port}{BASE}"
    gate = tikigate(folder / "gate", admin, free_port(), SQLITE + outbound(port, base_url))
    tiki = None
    try:
        number = 0
        while metric(admin, "tikigate_outbox_pending") < args.backlog:
            file = folder / "calls"
            write_calls(file, notices(number * 10_000_000, 60_000))
            load("fill", file, port, 2, 64)
            number += 1
        pending = metric(admin, "tikigate_outbox_pending")
        filled = peak_mib(gate)
        tiki = fake_tiki(folder, tiki_port)
        began, before = time.monotonic(), gate.cpu_seconds()
        while (left := metric(admin, "tikigate_outbox_pending")) > 0:
            if time.monotonic() - began > 900:
                sys.exit(f"drain: {left} are left after 15 minutes")
            time.sleep(0.2)
        took, used = time.monotonic() - began, gate.cpu_seconds() - before
        show(f"drain: {pending:.0f} notices in {took:.1f} s, {pending / took:.0f} a second, "
             f"{used * 1e6 / pending:.0f} CPU microseconds each")
        show(f"drain: peak RSS MiB (wanted: under 64): {peak_mib(gate):.1f}, after filling {filled:.1f}")
        connection = http.client.HTTPConnection("127.0.0.1", tiki_port, timeout=30)
        connection.request("GET", "/_control/counts")
        counts = connection.getresponse().read().decode()
        connection.close()
        show(f"drain: what Tiki saw: {re.sub(r'.taken.:{.*?}}', '', counts)[:300]}")
    finally:
        gate.stop(within=30)
        if tiki:
            tiki.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["direct", "accept", "drain"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="GETs of a turn")
    parser.add_argument("--seconds", type=int, default=8, help="of posting in a turn")
    parser.add_argument("--backlog", type=int, default=100_000)
    args = parser.parse_args()
    prepare("wrk", "curl", "openssl")
    parts = {"direct": direct, "accept": accept, "drain": drain}
    with tempfile.TemporaryDirectory(prefix="tikigate-bench-") as directory:
        for name, part in parts.items():
            if args.only in (None, name):
                part(pathlib.Path(directory), args)


if __name__ == "__main__":
    main()
