#!/usr/bin/env python3
"""Writes what the fuzzers start from into fuzz/seeds/, a directory a target.

Made anew from what the tests already have: the hostile corpus, the signature vectors, and the configurations that
people copy.
"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"
PAYLOADS = [
    '{"tiki_transaction_id":"t-1","transaction_amount":1000,"transaction_id":"p-1","status":"SUCCESS"}',
    '{"reference_transaction_id":"t-1","transaction_amount":1e3,"transaction_id":"p-1","partner_banking_method":"ATM"}',
    '{"tiki_transaction_id":"t-1","transaction_amount":1000.50,"transaction_id":"p-1","reason":"r","request_id":"r-1"}',
    '{"message_id":"m-1","message_type":"notification","message_created_at":"2022-11-09T14:55:13+07:00",'
    '"order":{"id":"o-1","status":"online_paid","grand_total":5e-1,"tiki_order_id":"1","tiki_order_code":"3"}}',
    '{"\\u0061mount":1,"a":[true,false,null,"\\ud83d\\ude00"],"":{"x":-0.0e+10}}',
    "1000.00",
    "-0",
    "1e40",
]
ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def unescape(text: str) -> bytes:
    """The escapes of fuzz/src/cases.rs."""
    pieces = []
    for plain, escape in re.findall(r"([^\\]+)|\\(x[0-9a-fA-F]{2}|.)", text):
        if plain:
            pieces.append(plain.encode())
        elif escape[0] == "x" and len(escape) == 3:
            pieces.append(bytes([int(escape[1:], 16)]))
        else:
            pieces.append(ESCAPES[escape])
    return b"".join(pieces)


def hostile():
    """Each case's bytes, with gaps, by file and line."""
    for path in sorted((ROOT / "tests/data/hostile").glob("*.txt")):
        name, pieces = None, []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("== "):
                if name:
                    yield name, b"".join(pieces)
                name, pieces = f"{path.stem}-{number}", []
            elif line.startswith("| "):
                pieces.append(unescape(line[2:]))
        yield name, b"".join(pieces)


def configurations():
    """The samples, and the blocks of TOML in the documents."""
    for path in sorted((ROOT / "config").glob("*.toml")):
        yield path.stem, path.read_bytes()
    for path in sorted((ROOT / "docs").glob("*.md")):
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", path.read_text(), re.S)):
            yield f"{path.stem}-{number}", block.encode()


def header_sets():
    """Header lines of the hostile corpus that concern the signature, with values that could be right."""
    filled = {b"timestamp": b"1667980513000", b"client": b"a.b.c", b"mac": b"0123456789abcdef" * 4}
    names = [b"timestamp", b"client-id", b"signature"]
    for family in [b"tikivip", b"tiniapp"]:
        values = zip(names, filled.values(), strict=True)
        yield family.decode(), b"".join(b"x-%s-%s: %s\n" % (family, name, value) for name, value in values)
    for name, raw in hostile():
        for gap, value in filled.items():
            raw = raw.replace(b"{%s}" % gap, value)
        lines = [line for line in raw.split(b"\r\n") if b"x-ti" in line.lower()]
        if lines:
            yield name, b"\n".join(lines)


def payloads():
    """Messages of each kind, and the bodies of the signature vectors."""
    for number, text in enumerate(PAYLOADS):
        yield f"payload-{number}", text.encode()
    vectors = json.loads((ROOT / "tests/data/signature.json").read_text())
    for number, text in enumerate(strings(vectors)):
        if text.startswith("{"):
            yield f"vector-{number}", text.encode()


def proxy_headers():
    """Lines of version 1 and headers of version 2, right ones and such that are almost right."""
    addresses = {"TCP4": ("192.0.2.7", "198.51.100.1"), "TCP6": ("2001:db8::1", "::1"), "UNKNOWN": ("x", "y")}
    for family, (source, target) in addresses.items():
        for ports in ["51234 443", "0 65535", "65536 1", "01 2", "+1 2"]:
            line = f"PROXY {family} {source} {target} {ports}\r\n"
            yield f"line-{family}-{ports.replace(' ', '-')}", line.encode() + b"GET / HTTP/1.1\r\n"
    yield "line-alone", b"PROXY UNKNOWN\r\n"
    yield "line-long", b"PROXY TCP6 " + b"1" * 120
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    blocks = {0x00: b"", 0x11: bytes(range(12)), 0x21: bytes(range(36)), 0x31: b"/x" + bytes(214), 0x12: bytes(12)}
    for command in [0x20, 0x21, 0x22, 0x11]:
        for family, block in blocks.items():
            for extension in [b"", b"\x01\0\x02h2", bytes(1100)]:
                rest = block + extension
                head = signature + bytes([command, family]) + len(rest).to_bytes(2, "big")
                yield f"binary-{command:02x}-{family:02x}-{len(extension)}", head + rest


def strings(value):
    """Every string anywhere in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def main():
    """Writes all."""
    for target, seeds in {
        "configuration": configurations(),
        "payload": payloads(),
        "proxy_header": proxy_headers(),
        "signature_headers": header_sets(),
        "whole_request": hostile(),
    }.items():
        directory = SEEDS / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in seeds:
            (directory / name).write_bytes(content)
        print(f"{directory.relative_to(ROOT)}: {len(list(directory.iterdir()))} files")


if __name__ == "__main__":
    main()
