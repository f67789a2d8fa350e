"""From samples to rows: medians, spreads, ratios, and whether a limit was met."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterable

from .cases import Case, Row

Sample = dict[str, Any]


@dataclass
class Line:
    """A row with its figures."""

    title: str
    case: str
    unit: str
    path: str
    yardstick: str | None
    value: float | None = None
    beside: float | None = None
    # Of value and beside; of a row without a yardstick, nothing.
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    rounds: int = 0
    limit: float | None = None
    less: bool = False
    # "met", "missed", "measured" when nothing is demanded, else "skipped"
    verdict: str = "skipped"
    reason: str = ""


def quantile(values: Iterable[float], q: float) -> float:
    """The smallest value that a share of q does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "p50": statistics.median,
    "p99": lambda values: quantile(values, 0.99),
}


def by_round(samples: Iterable[Sample], case: str, path: str, metric: str) -> dict[int, float]:
    """One path's figures in one case."""
    return {sample["round"]: sample["figures"][metric] for sample in samples
            if sample["case"] == case and sample["path"] == path and metric in sample["figures"]}


def line(row: Row, unit: str, samples: list[Sample], reasons: dict[tuple[str, str], str]) -> Line:
    """A row of the table."""
    made = Line(row.title, row.case, unit, row.path, row.yardstick, limit=row.limit, less=row.less)
    own = by_round(samples, row.case, row.path, row.metric)
    beside_case = row.yardstick_case or row.case
    beside = by_round(samples, beside_case, row.yardstick, row.metric) if row.yardstick else {}
    statistic = STATISTICS[row.statistic]
    made.rounds = len(own)
    made.value = statistic(list(own.values())) if own else None
    made.beside = statistic(list(beside.values())) if beside else None
    if made.value is None or (row.yardstick and made.beside is None):
        missing = (row.case, row.path) if made.value is None else (beside_case, row.yardstick or "")
        made.reason = reasons.get(missing) or reasons.get((missing[0], "")) or "not measured in this run"
        return made
    spread = list(own.values())
    if row.yardstick:
        made.ratio = made.value / made.beside if made.beside else None
        spread = [own[number] / beside[number] for number in own if beside.get(number)]
    if row.statistic == "median" and len(spread) > 1:
        made.spread = (min(spread), max(spread))
    decisive = made.ratio if row.yardstick else made.value
    if row.limit is None or decisive is None:
        made.verdict = "measured"
    else:
        made.verdict = "met" if (decisive <= row.limit if row.less else decisive >= row.limit) else "missed"
    return made


def lines(rows: list[Row], cases: list[Case], samples: list[Sample], skipped: list[dict[str, str]]) -> list[Line]:
    """The table, for the cases of this run."""
    reasons = {(skip["case"], skip["path"]): skip["reason"] for skip in skipped}
    units = {case.name: case for case in cases}
    return [line(row, unit_of(row, units[row.case]), samples, reasons) for row in rows if row.case in units]


def unit_of(row: Row, case: Case) -> str:
    """A row's unit: its case's, unless it takes another figure."""
    return "Gbit/s" if row.metric == "bulk_gbit" else case.unit


def as_json(report: dict[str, Any], table: list[Line]) -> dict[str, Any]:
    """Everything, for a file."""
    return {**report, "rows": [asdict(one) for one in table]}
