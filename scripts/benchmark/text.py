"""The table on the terminal."""

from __future__ import annotations

from typing import Any

from .paths import TITLES
from .summary import Line


# Others may keep so much of the machine busy before a report warns.
QUIET = 0.05


def figure(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def limit(one: Line) -> str:
    """What is demanded."""
    return "" if one.limit is None else f"{'≤' if one.less else '≥'} {one.limit:g}"


def spread(one: Line) -> str:
    """From least to most."""
    return "" if one.spread is None else f"{figure(one.spread[0])}–{figure(one.spread[1])}"


def heading(report: dict[str, Any]) -> list[str]:
    """Where the figures come from."""
    machine, settings = report["machine"], report["settings"]
    notes = [f"{TITLES.get(path, path)}: {note}" for path, note in report["notes"].items()]
    return [
        f"{machine['cpus']} × {machine['model']}, Linux {machine['kernel']}",
        f"tapir {machine['revision']}, {machine['date']}, {settings['rounds']} rounds"
        f"{' (quick)' if settings['quick'] else ''}, TCP with cubic where no other is named",
        *notes,
        *([f"NOT QUIET: others kept {machine['busy_cpus_before']:.1f} CPUs busy before the start; these figures mean little"]
          if machine["busy_cpus_before"] > QUIET * machine["cpus"] else []),
    ]


def table(report: dict[str, Any], lines: list[Line]) -> str:
    """All rows, those first that have a limit, and what was skipped."""
    demanded = [one for one in lines if one.limit is not None]
    others = [one for one in lines if one.limit is None]
    header = ("what", "tapir", "yardstick", "", "ratio", "spread", "limit", "")
    cells = [header]
    for one in [*demanded, *others]:
        if one.verdict == "skipped":
            cells.append((one.title, "skipped", one.reason, "", "", "", limit(one), ""))
            continue
        verdict = {"met": "met", "missed": "MISSED"}.get(one.verdict, "")
        cells.append((one.title, figure(one.value), figure(one.beside), one.unit, figure(one.ratio), spread(one),
                      limit(one), verdict))
    shown = [row for row in cells if row[1] != "skipped"]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    lines_out = [*heading(report), ""]
    for row in cells:
        if row[1] == "skipped":
            lines_out.append(f"{row[0]:<{widths[0]}}  skipped: {row[2]}" + (f"  ({row[6]})" if row[6] else ""))
        else:
            lines_out.append("  ".join(aligned(cell, width, column) for column, (cell, width)
                                       in enumerate(zip(row, widths))).rstrip())
    failures = [skip for skip in report["skipped"] if skip["kind"] == "failed"]
    lines_out += [""] * bool(failures)
    lines_out += [f"failed: {skip['case']} on {TITLES.get(skip['path'], skip['path'])}: {skip['reason']}" for skip in failures]
    met, missed = (sum(one.verdict == verdict for one in lines) for verdict in ("met", "missed"))
    lines_out += ["", f"{met} limits met, {missed} missed, "
                      f"{sum(one.verdict == 'skipped' for one in demanded)} not measured in this run"]
    return "\n".join(lines_out)


def aligned(cell: str, width: int, column: int) -> str:
    """Words to the left, figures to the right."""
    return f"{cell:<{width}}" if column in (0, 3, 7) else f"{cell:>{width}}"
