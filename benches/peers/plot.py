"""The part `targets` as a picture: CPU time per request as bars, with the spread of the rounds."""

from xml.sax.saxutils import escape

WIDTH, BAR, GAP, LEFT, RIGHT, TOP = 900, 20, 10, 300, 150, 62
OURS, THEIRS, INK, PALE = "#1a6fb5", "#9aa5b1", "#24292f", "#6e7781"


def bars(rows, machine):
    """An SVG document."""
    height = TOP + len(rows) * (BAR + GAP) + 48
    most = max(row["cpu_us"][2] for row in rows)
    scale = (WIDTH - LEFT - RIGHT) / most
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img">',
        '<title>CPU time per request of tikigate and other proxies</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600" fill="{INK}">CPU time of the proxy per request, µs</text>',
        f'<text x="16" y="46" fill="{PALE}">300-byte signed calls, 64 connections, one worker each; less is better. '
        f"×: the ratio to HAProxy checking the same signature</text>",
    ]
    y = TOP
    for row in rows:
        middle, least, most_seen = row["cpu_us"]
        ours = row["target"].startswith("tikigate")
        end = LEFT + middle * scale
        center = y + BAR / 2
        out += [
            f'<text x="{LEFT - 10}" y="{center + 4.5}" text-anchor="end" fill="{INK}" '
            f'font-weight="{600 if ours else 400}">{escape(row["target"])}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{middle * scale:.1f}" height="{BAR}" rx="2" fill="{OURS if ours else THEIRS}"/>',
            f'<path d="M{LEFT + least * scale:.1f} {center}H{LEFT + most_seen * scale:.1f}" stroke="{INK}" stroke-width="1.5"/>',
            f'<text x="{max(end, LEFT + most_seen * scale) + 8:.1f}" y="{center + 4.5}" fill="{INK}">{middle:.1f}'
            + (f'<tspan fill="{PALE}">  ×{row["haproxy"][0]:.2f}</tspan>' if row["haproxy"] else "")
            + "</text>",
        ]
        y += BAR + GAP
    rounds = len(rows[0]["rounds"])
    out += [
        f'<text x="16" y="{y + 20}" font-size="12" fill="{PALE}">Medians of {rounds} rounds, the line from the least to the most. '
        f"{escape(machine['cpu'])}, {machine['cores']} cores, {machine['day']}; benches/peers/run.py</text>",
        "</svg>\n",
    ]
    return "\n".join(out)
