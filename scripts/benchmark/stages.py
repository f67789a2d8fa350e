"""The pure stages of forwarding, which Criterion measures in the benchmark program `forward`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from .cases import Case
from .machine import Failed, run, say
from .run import Run

# Criterion's names of the two figures.
IDENTIFIERS = {"forward/1M": "forward/1M", "forward/10": "forward/10"}


def measure(run_: Run, cases: list[Case], program: Path | None) -> None:
    """Runs the program once and reads its estimates."""
    if not cases:
        return
    if program is None:
        for case in cases:
            run_.skip(case.name, "forward", "benches/forward.rs is not there, or was not built (--bin)")
        return
    quick = ["--warm-up-time", "0.3", "--measurement-time", "1"] if run_.settings.quick else []
    with tempfile.TemporaryDirectory() as folder:
        try:
            run([str(program), "--bench", "--noplot", *quick, "^forward/(1M|10)$"], timeout=300,
                env={"CRITERION_HOME": folder, "PATH": "/usr/bin:/bin"})
            for case in cases:
                figures = {"ns": estimate(Path(folder), IDENTIFIERS[case.name])}
                run_.add(case, "forward", 1, figures)
                say(f"  {case.name}: {figures['ns']:.0f} ns")
        except Failed as failed:
            for case in cases:
                run_.skip(case.name, "forward", str(failed), "failed")


def estimate(home: Path, identifier: str) -> float:
    """The median of a benchmark, in ns for each of its elements."""
    folder = home / identifier / "new"
    try:
        median = json.loads((folder / "estimates.json").read_text())["median"]["point_estimate"]
        throughput = json.loads((folder / "benchmark.json").read_text()).get("throughput") or {}
    except (OSError, ValueError, KeyError) as error:
        raise Failed(f"no estimate of {identifier}: {error}") from None
    return median / throughput.get("Elements", 1)
