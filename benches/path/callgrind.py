"""Reads what callgrind wrote: instructions by function, with and without what was called, and calls.

The format is described in Valgrind's manual ("Callgrind Format Specification"). A file has one cost a line,
here instructions (Ir); names are written out once and then stand as their number.
"""

import collections
import re


class Profile:
    """The costs of one or several dumps."""

    def __init__(self):
        self.total = 0
        # Instructions of a function's own code.
        self.own = collections.Counter()
        # How often a function was called, and what those calls cost with all that they called.
        self.calls = collections.Counter()
        self.inclusive = collections.Counter()

    def add(self, path):
        names = {}
        function = called = None
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = iter(file)
            for line in lines:
                if line.startswith("fn="):
                    function = named(line[3:], names)
                elif line.startswith("cfn="):
                    called = named(line[4:], names)
                elif line.startswith("calls="):
                    count = int(line[6:].split()[0])
                    cost = int(next(lines).split()[1])
                    self.calls[called] += count
                    # A function that calls itself would be counted once for each depth.
                    if called != function:
                        self.inclusive[called] += cost
                elif function and re.match(r"[+\-*\d]", line):
                    cost = int(line.split()[1])
                    self.own[function] += cost
                    self.total += cost


def named(text, names):
    """The name behind `(7) name` or `(7)`."""
    number, _, name = text.strip().partition(" ")
    if name:
        # Recursion is told apart by a number at the end.
        names[number] = re.sub(r"'\d+$", "", name)
    return names[number]
