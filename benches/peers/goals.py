"""What the gate is to reach, as ratios within one run or as plain figures."""


def judge(results):
    """The goals for which the run has figures."""
    found = []

    def goal(case, value, bound, unit="", at_least=False, plain=None):
        """`plain`: what a plain proxy took in this run, and which it was, if one ran that does what the case is about."""
        if value is not None:
            met = value >= bound if at_least else value <= bound
            found.append(
                {"case": case, "value": value, "bound": bound, "unit": unit, "at_least": at_least, "met": met, "plain": plain}
            )

    def row(part, name, key):
        """The median of a row's figure, if the run has it. What was not answered as it should be costs less: such
        a row reaches nothing."""
        for candidate in results.get(part, []):
            if candidate["target"] == name and candidate[key]:
                failed = any(figure["failures"] for figure in candidate["rounds"])
                return float("inf") if failed else candidate[key][0]
        return None

    def of(part, key, index=None):
        value = results.get(part, {}).get(key)
        return value[index] if value is not None and index is not None else value

    def by(name, key="haproxy"):
        value = row("plain", f"plain: {name}", key)
        return value and (value, name)

    counted = of("path", "plain_instructions")
    counted = counted and (counted, "HTTP")
    verify = "tikigate, verify only"
    to_haproxy = "CPU to HAProxy checking: "
    goal(to_haproxy + "verify only", row("targets", verify, "haproxy"), 0.70, plain=by("HTTP"))
    goal("CPU to nginx passing through: verify only", row("targets", verify, "nginx"), 1.15, plain=by("HTTP", "nginx"))
    goal(to_haproxy + "IPN with SQLite", row("targets", "tikigate, IPN, SQLite", "haproxy"), 0.95, plain=by("HTTP, SQLite twice"))
    goal(to_haproxy + "refund, reused connections", row("targets", "tikigate, refund, reused connections", "haproxy"), 1.50, plain=by("HTTP, SQLite twice"))
    goal(to_haproxy + "refund", row("targets", "tikigate, refund", "haproxy"), 2.70, plain=by("HTTP, fresh connections, SQLite twice"))
    goal(to_haproxy + "replay", row("targets", "tikigate, replay", "haproxy"), 0.37, plain=by("HTTP, forged"))
    goal(to_haproxy + "forged signature", row("targets", "tikigate, forged signature", "haproxy"), 0.33, plain=by("HTTP, forged"))
    goal(to_haproxy + "unknown client", row("targets", "tikigate, unknown client", "haproxy"), 0.25, plain=by("HTTP, forged"))
    goal(to_haproxy + "4 KiB, verify only", row("bodies", f"{verify}, 4 KiB", "haproxy"), 0.60, plain=by("HTTP, 4 KiB"))
    goal("CPU to nginx passing through: 64 KiB, verify only", row("bodies", f"{verify}, 64 KiB", "nginx"), 1.90, plain=by("HTTP, 64 KiB", "nginx"))
    goal("p99 to HAProxy checking: verify only", row("targets", verify, "haproxy_p99"), 1.00, plain=by("HTTP", "haproxy_p99"))
    goal("p99 of refunds", row("targets", "tikigate, refund", "p99_ms"), 15, " ms", plain=by("HTTP, fresh connections, SQLite twice", "p99_ms"))
    goal("CPU of a refund with many records, to few", of("records", "refund_cpu_ratio", 0), 1.25)
    goal("requests a second of two workers to one, each bound to a fifth of a core", of("workers", "bounded_per_second", 0), 1.8, at_least=True)
    goal("resident memory after a million requests, all remembered", of("memory", "after_mib"), 24, " MiB")
    goal("resident memory of an idle connection", of("memory", "idle_kib"), 10, " KiB")
    goal("instructions of a forwarded request, verify only", of("path", "instructions"), 30_000, plain=counted)
    goal("allocations of a forwarded request, verify only", of("path", "allocations"), 20)
    goal("from start to ready with many records", of("records", "start_seconds", 2), 1, " s")
    size = of("binary", "bytes")
    goal("release binary", size and size / 2**20, 12, " MiB")
    return found
