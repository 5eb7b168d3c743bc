#!/usr/bin/env python3
"""Instructions and allocations of one request, counted by callgrind: the same every time, whatever else runs.

    benches/path/run.py                        verify only
    benches/path/run.py --path /refund --functions 40
    benches/path/run.py --json
    benches/path/run.py --plain                a plain proxy of the same libraries: benches/plain

The gate that is shipped runs under Valgrind's callgrind, with the names of its functions kept (the profile
`profiling`), one worker and everything on. One connection sends signed calls one after the other; nginx is the backend.
What is counted lies between two dumps, so neither the start nor the first calls, and it counts all of the gate's
threads, the kernel's work excepted.

Valgrind knows no SHA instructions, so SHA-256 is computed without them: some 2,000 instructions a block of 64
bytes, where the CPU's own need some 150. So its share stands apart, and `instructions` is the rest.

Installs nothing: needs Debian's valgrind and nginx. Builds the gate (cargo build --profile profiling). `tests/run`
prints this, and fails on more allocations than are held to.
"""

import argparse
import collections
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from callgrind import Profile
from common import MEMORY, REPO, SECRET, SQLITE, Process, free_port, nginx, request, tikigate

BINARY = REPO / "target/profiling/tikigate"
SHA = "compress256"
WARM_UP = 300
# How calls differ, and what they are answered.
KINDS = {
    "good": ({}, 200),
    "replay": ({}, 200),
    "forged": ({"forge": True}, 401),
    "unknown": ({"client": "nobody-is-configured-with-this-1"}, 401),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="/any", choices=("/any", "/ipn", "/refund", "/reused/refund"))
    parser.add_argument("--kind", default="good", choices=KINDS, help="what the calls are")
    parser.add_argument("--size", type=int, default=300, help="bytes of a body")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=16, help="show so many parts of the program")
    parser.add_argument("--functions", type=int, default=0, help="show so many functions, by their own instructions")
    parser.add_argument("--below", default="", help="and what they cost with all that they call, of functions with this in their name")
    parser.add_argument("--ledger", default="memory", choices=("memory", "sqlite"))
    parser.add_argument("--plain", action="store_true", help="count benches/plain, which checks and forwards and does nothing else")
    parser.add_argument("--binary", help="count this one, with its names, and build none")
    parser.add_argument("--most-allocations", type=float, help="fail if there are more")
    parser.add_argument("--keep", help="where callgrind's own files are to be kept, for callgrind_annotate")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.plain and (args.binary or args.path != "/any" or args.kind not in ("good", "forged")):
        parser.error("--plain counts good or forged calls of benches/plain, whatever the path is")
    build = ["cargo", "build", "--profile", "profiling", "--locked", "--quiet", *(["--example", "plain"] if args.plain else [])]
    if not args.binary and subprocess.run(build, cwd=REPO).returncode:
        sys.exit("the gate could not be built")

    with tempfile.TemporaryDirectory() as directory:
        profile = counted(pathlib.Path(directory), args)
    sha = sum(cost for name, cost in profile.own.items() if SHA in name)
    allocations = sum(profile.calls[name] for name in ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"))
    # Were one of them called otherwise, the figures would be silently wrong.
    if not allocations or (not sha and args.kind != "unknown"):
        sys.exit("the profile has no function that computes SHA-256, or none that allocates: what are they called now?")
    result = {
        "path": args.path,
        "size": args.size,
        "instructions": (profile.total - sha) / args.requests,
        "sha256_in_software": sha / args.requests,
        "allocations": allocations / args.requests,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"a request to {args.path} with {args.size} B, the mean of {args.requests}:")
    print(f"  {result['instructions']:,.0f} instructions, and {result['sha256_in_software']:,.0f} for SHA-256 in software")
    print(f"  {result['allocations']:.2f} allocations", flush=True)
    for part, cost in parts(profile).most_common(args.parts):
        print(f"  {cost / args.requests:10,.0f}  {part}")
    for name, cost in profile.own.most_common(args.functions):
        print(f"  {cost / args.requests:10,.0f}  {profile.calls[name] / args.requests:7.2f} calls  {name[:150]}")
    if args.below:
        print(f"with what they call, of functions named {args.below}:")
        shown = [(cost, name) for name, cost in profile.inclusive.items() if args.below in name]
        for cost, name in sorted(shown, reverse=True)[:80]:
            print(f"  {cost / args.requests:10,.0f}  {profile.calls[name] / args.requests:7.2f} calls  {name[:150]}")
    if args.most_allocations and result["allocations"] > args.most_allocations:
        sys.exit(f"benches/path: {result['allocations']:.2f} allocations a request, at most {args.most_allocations:g} are held to")


# What has no crate in its name: the C library's and SQLite's functions.
C_PARTS = (
    (r"^(__)?mem(cpy|move|set|cmp)", "memory copied and compared (libc)"),
    (r"^_?_?(int_)?(malloc|calloc|realloc|free|posix_memalign|unlink_chunk|malloc_consolidate|sysmalloc)", "allocator (libc)"),
    (r"^(sqlite3|wal|btree|pager|pcache|vdbe|balance|unix|releaseMem|moveTo|insertCell|allocate|page|readDb|serialGet|applyAffinity)",
     "sqlite"),
)


def parts(profile):
    """Instructions by crate, and by module of the gate's own."""
    found = collections.Counter()
    for name, cost in profile.own.items():
        if SHA in name:
            continue
        crate = re.search(r"\b([a-z][a-z0-9_]*)::", name)
        if crate and crate[1] == "tikigate":
            part = re.search(r"tikigate::\w+", name)[0]
        elif crate:
            part = crate[1]
        else:
            part = next((part for pattern, part in C_PARTS if re.match(pattern, name)), "other C")
        found[part] += cost
    return found


def counted(directory, args):
    """The profile of the requests after the first."""
    backend = nginx(directory, free_port())
    out = directory / "callgrind.out"
    tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--compress-strings=yes", "--quiet"]
    if args.plain:
        port = free_port()
        plain = [BINARY.parent / "examples/plain", "hyper", f"127.0.0.1:{port}", f"127.0.0.1:{backend.port}", SECRET]
        gate = Process([*tool, *map(str, plain)], port, directory / "log")
    else:
        ledger = SQLITE if args.ledger == "sqlite" else MEMORY
        gate = tikigate(directory / "gate", free_port(), backend.port, ledger, binary=args.binary or BINARY, before=tool)
    try:
        with socket.create_connection(("127.0.0.1", gate.port), timeout=120) as connection:
            send(connection, args, range(WARM_UP))
            control("--zero", gate)
            send(connection, args, range(WARM_UP, WARM_UP + args.requests))
            control("--dump", gate)
    finally:
        gate.stop(within=60)
        backend.stop()
    dump = directory / "callgrind.out.1"
    if not dump.exists():
        sys.exit("callgrind wrote no profile")
    if args.keep:
        pathlib.Path(args.keep).write_bytes(dump.read_bytes())
    profile = Profile()
    profile.add(dump)
    return profile


def control(what, gate):
    """Tells callgrind, which does it at once."""
    run = subprocess.run(["callgrind_control", what, str(gate.process.pid)], capture_output=True, text=True)
    if run.returncode or "OK." not in run.stdout:
        sys.exit(f"callgrind_control {what}: {run.stdout}{run.stderr}")


def send(connection, args, numbers):
    """Calls one after the other, each answered as it should be."""
    differs, status = KINDS[args.kind]
    for number in numbers:
        connection.sendall(request(args.path, 1 if args.kind == "replay" else number, args.size, **differs))
        answer = connection.recv(65536)
        if not answer.startswith(b"HTTP/1.1 %d " % status):
            sys.exit(f"a call was not taken: {answer.decode(errors='replace')}")


if __name__ == "__main__":
    main()
