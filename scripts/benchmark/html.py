"""One self-contained page: the table, and a plot for every case, drawn here as SVG."""

from __future__ import annotations

import math
import statistics
from html import escape
from typing import Any, Iterable

from .paths import TITLES
from .summary import Line
from .text import figure, heading, limit, spread

STYLE = """
:root { --ink: #1c2430; --soft: #667080; --line: #d9dee6; --page: #fff; --own: #0b6bcb; --other: #8a94a3;
        --good: #19803d; --bad: #c02626; --band: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #97a1b0; --line: #38414e; --page: #14181e; --own: #5aa9f8; --other: #8590a0;
          --good: #4cc076; --bad: #f27171; --band: #1c222a; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
       max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, li { color: var(--soft); margin: .2rem 0; } ul { padding-left: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap;
         font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; white-space: normal; }
td.unit { text-align: left; color: var(--soft); } td.skipped { text-align: left; color: var(--soft); white-space: normal; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 700; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(29rem, 1fr)); gap: 1.1rem 1.6rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .2rem; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); } svg .own { fill: var(--own); stroke: var(--own); }
svg .other { fill: var(--other); stroke: var(--other); } svg .good { fill: var(--good); stroke: var(--good); }
svg .bad { fill: var(--bad); stroke: var(--bad); } svg .mark { stroke: var(--ink); stroke-width: 2; }
@media (max-width: 34rem) { .plots { grid-template-columns: 1fr; } }
"""
# Paths of tapir, drawn in its colour.
OWN = {"same", "cut", "uncut", "rawcut", "many", "forward"}


def page(report: dict[str, Any]) -> str:
    """The whole page, from what the JSON file holds."""
    lines = [Line(**row) for row in report["rows"]]
    demanded = [one for one in lines if one.limit is not None]
    others = [one for one in lines if one.limit is None and one.verdict != "skipped"]
    met, missed = (sum(one.verdict == verdict for one in lines) for verdict in ("met", "missed"))
    body = [
        "<h1>tapir beside its peers</h1>", facts(report),
        f'<p><b class="met">{met} limits met</b>, <b class="{"missed" if missed else "met"}">{missed} missed</b>, '
        f'{sum(one.verdict == "skipped" for one in demanded)} not measured in this run.</p>',
        "<h2>Limits</h2>", ratios(demanded), table(demanded),
        "<h2>Beside them</h2>", table(others),
        "<h2>Samples</h2>", "<p>A dot is a sample, the bar its median. Blue is tapir.</p>",
        f'<div class="plots">{"".join(plots(report))}</div>', skipped(report),
    ]
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/><title>tapir beside its peers</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{STYLE}</style></head>'
            f'<body>{"".join(body)}</body></html>')


def facts(report: dict[str, Any]) -> str:
    """Where and how it was measured."""
    lines = [*heading(report), f"The run took {report['seconds']:.0f} s."]
    return "".join(f'<p class="missed">{escape(line)}</p>' if line.startswith("NOT QUIET") else f"<p>{escape(line)}</p>"
                   for line in lines)


def table(lines: Iterable[Line]) -> str:
    """The rows."""
    out = ["<div class='wide'><table><thead><tr><th>what</th><th>tapir</th><th>yardstick</th><th></th><th>ratio</th>"
           "<th>spread</th><th>limit</th><th></th></tr></thead><tbody>"]
    for one in lines:
        out.append(f"<tr><td>{escape(one.title)}</td>")
        if one.verdict == "skipped":
            out.append(f'<td class="skipped" colspan="5">skipped: {escape(one.reason)}</td><td>{limit(one)}</td><td></td></tr>')
            continue
        cells = [figure(one.value), figure(one.beside), None, figure(one.ratio), spread(one), limit(one)]
        out += [f'<td class="unit">{escape(one.unit)}</td>' if cell is None else f"<td>{escape(cell)}</td>" for cell in cells]
        verdict = {"met": "met", "missed": "missed"}.get(one.verdict, "")
        out.append(f'<td class="{verdict}">{verdict}</td></tr>')
    return "".join(out) + "</tbody></table></div>"


def ratios(lines: list[Line]) -> str:
    """Ratios with a yardstick on a logarithmic axis, each with its limit."""
    shown = [one for one in lines if one.ratio and one.limit]
    if not shown:
        return ""
    left, width, height = 330, 960, 24
    values: list[float] = [value for one in shown for value in (one.ratio, one.limit, *(one.spread or ())) if value]
    low, high = math.log2(min(values + [0.5])), math.log2(max(values + [2]))

    def x(value: float | None) -> float:
        return left + (math.log2(value or 1) - low) / (high - low) * (width - left - 110)

    bottom = len(shown) * height + 8
    out = [f'<svg viewBox="0 0 {width} {bottom + 20}" role="img" aria-label="ratios">']
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = x(2.0 ** power)
        out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{bottom}"/>'
                   f'<text class="soft" x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{2.0 ** power:g}</text>')
    for number, one in enumerate(shown):
        y, colour = number * height + 14, "bad" if one.verdict == "missed" else "good"
        out.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(one.title)}</text>')
        if one.spread and one.spread[0] > 0:
            out.append(f'<line class="{colour}" x1="{x(one.spread[0]):.1f}" x2="{x(one.spread[1]):.1f}" y1="{y}" y2="{y}"/>')
        out.append(f'<circle class="{colour}" cx="{x(one.ratio):.1f}" cy="{y}" r="5"/>')
        out.append(f'<line class="mark" x1="{x(one.limit):.1f}" x2="{x(one.limit):.1f}" y1="{y - 8}" y2="{y + 8}"/>')
        right = max([one.ratio, one.limit, *(one.spread or ())])
        out.append(f'<text class="soft" x="{x(right) + 10:.1f}" y="{y + 4}">{figure(one.ratio)} '
                   f'({limit(one)})</text>')
    return "".join(out) + '</svg><p>tapir over its yardstick; the line across is the limit, the thin line the spread of rounds.</p>'


def plots(report: dict[str, Any]) -> Iterable[str]:
    """One for each case that has samples."""
    for case in report["cases"]:
        series: dict[str, list[float]] = {}
        for sample in report["samples"]:
            if sample["case"] == case["name"] and case["metric"] in sample["figures"]:
                series.setdefault(sample["path"], []).append(sample["figures"][case["metric"]])
        if series:
            caption = escape(f"{case['title']}, {case['unit']}")
            yield f"<figure><figcaption>{caption}</figcaption>{strip(series, case['name'])}</figure>"


def strip(series: dict[str, list[float]], name: str) -> str:
    """Dots of each path on a line of its own."""
    left, width, height = 190, 480, 22
    top = nice(max(max(values) for values in series.values()))

    def x(value: float) -> float:
        return left + value / top * (width - left - 62)

    bottom = len(series) * height + 6
    out = [f'<svg viewBox="0 0 {width} {bottom + 18}" role="img" aria-label="{escape(name)}">']
    for share in (0, 0.5, 1):
        at = x(share * top)
        out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{bottom}"/>'
                   f'<text class="soft" x="{at:.1f}" y="{bottom + 13}" text-anchor="middle">{share * top:g}</text>')
    for number, (path, values) in enumerate(series.items()):
        y, colour, middle = number * height + 13, "own" if path in OWN else "other", statistics.median(values)
        out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(TITLES.get(path, path))}</text>')
        out.append(f'<rect class="{colour}" opacity=".25" x="{x(0):.1f}" y="{y - 6}" width="{x(middle) - x(0):.1f}" height="12"/>')
        out += [f'<circle class="{colour}" cx="{x(value):.1f}" cy="{y}" r="2.5" opacity=".8"/>' for value in values]
        out.append(f'<text class="soft" x="{x(max(values)) + 8:.1f}" y="{y + 4}">{figure(middle)}</text>')
    return "".join(out) + "</svg>"


def nice(value: float) -> float:
    """The next of 1, 2, 2.5, 4, 5, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 2.5, 4, 5, 8, 10) if step * unit >= value * (1 - 1e-9))


def skipped(report: dict[str, Any]) -> str:
    """What has no figure, and why."""
    if not report["skipped"]:
        return ""
    items = (f"<li>{escape(skip['case'])}, {escape(TITLES.get(skip['path'], skip['path']) or 'a round')}: {escape(skip['kind'])}, "
             f"{escape(skip['reason'])}</li>" for skip in report["skipped"])
    return f"<h2>Without a figure</h2><ul>{''.join(items)}</ul>"
