"""The figures of a run as tables."""

COLUMNS = (
    ("cpu_us", "CPU µs", "{:.1f}"),
    ("haproxy", "to HAProxy", "{:.2f}"),
    ("nginx", "to nginx", "{:.2f}"),
    ("per_second", "a second", "{:.0f}"),
    ("p50_ms", "p50 ms", "{:.2f}"),
    ("p99_ms", "p99 ms", "{:.2f}"),
    ("rss_mib", "RSS MiB", "{:.1f}"),
)


def show(name, result, args):
    """One part."""
    if isinstance(result, list):
        print(f"\n{name}: medians of {len(result[0]['rounds'])} rounds (least-most)")
        print(f"{'':46}" + "".join(f"{title:>20}" for _, title, _ in COLUMNS) + f"{'failures':>10}")
        for row in result:
            cells = "".join(cell(row[key], form).rjust(20) for key, _, form in COLUMNS)
            print(f"{row['target']:46}{cells}{sum(figure['failures'] for figure in row['rounds']):>10}")
    else:
        print(f"\n{name}")
        for key, value in result.items():
            if key != "turns":
                print(f"  {key}: {plain(value)}")
    print(end="", flush=True)


def cell(values, form):
    if values is None:
        return "-"
    middle, least, most = (form.format(value) for value in values)
    return f"{middle} ({least}-{most})"


def plain(value):
    if isinstance(value, list) and len(value) == 3:
        return cell(value, "{:.3g}")
    return f"{value:,.4g}" if isinstance(value, float) else value


def show_goals(goals):
    """What was to be reached, and what was."""
    if not goals:
        return
    print("\nTo reach")
    for goal in goals:
        bound = "at least" if goal["at_least"] else "at most"
        verdict = "met" if goal["met"] else "MISSED"
        plain_one = "; a plain proxy ({1}) takes {0:,.4g}".format(*goal["plain"]) if goal["plain"] else ""
        print(f"  {verdict:7} {goal['case']}: {goal['value']:,.4g}, {bound} {goal['bound']:g}{goal['unit']}{plain_one}")
