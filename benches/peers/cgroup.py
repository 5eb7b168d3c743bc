"""Bounds on the CPU time of single threads, by the kernel's control groups (version 1, which has them by thread)."""

import pathlib
import sys

ROOT = pathlib.Path("/sys/fs/cgroup/cpu")
PERIOD = 10_000  # µs


class Quota:
    """Threads that together use at most this share of one core, within a `with` block. Needs root."""

    def __init__(self, name, threads, share):
        self.group, self.threads, self.share = ROOT / f"tikigate-{name}", threads, share

    def __enter__(self):
        try:
            self.group.mkdir()
            (self.group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self.group / "cpu.cfs_quota_us").write_text(str(int(PERIOD * self.share)))
            self.move(self.group)
        except OSError as error:
            sys.exit(f"threads can't be bounded here, which takes root and control groups of version 1: {error}")
        return self

    def __exit__(self, *_):
        self.move(ROOT)
        self.group.rmdir()

    def move(self, to):
        for thread in self.threads:
            (to / "tasks").write_text(str(thread))
