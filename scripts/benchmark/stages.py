"""The pure stages of forwarding, which Criterion measures in the benchmark program `forward`."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from .cases import Case
from .machine import Failed, run, say
from .run import Run

# Criterion's names of the two figures.
IDENTIFIERS = {
    "forward/1M": "forward and flow, pod to tunnel, IPv4/1 M",
    "forward/10": "forward and flow, pod to tunnel, IPv4/10",
}


def measure(run_: Run, cases: list[Case], program: Path | None) -> None:
    """Runs the program and reads its estimates."""
    if not cases:
        return
    if program is None:
        for case in cases:
            run_.skip(case.name, "forward", "benches/forward.rs is not there, or was not built (--bin)")
        return
    for number in range(1, run_.rounds_of(cases[0]) + 1):
        try:
            once(run_, cases, program, number)
        except Failed as failed:
            for case in cases:
                run_.skip(case.name, "forward", str(failed), "failed")
            return


def once(run_: Run, cases: list[Case], program: Path, number: int) -> None:
    """One run of the program."""
    names = "|".join(re.escape(IDENTIFIERS[case.name]) for case in cases)
    with tempfile.TemporaryDirectory() as folder:
        run([str(program), "--bench", "--noplot", f"^({names})$"], timeout=300, cwd=folder,
            env={"CRITERION_HOME": folder, "PATH": os.defpath})
        for case in cases:
            figures = {"ns": estimate(Path(folder), IDENTIFIERS[case.name])}
            run_.add(case, "forward", number, figures)
            say(f"  round {number}  {case.name:<15} {case.unit:>9}:  {figures['ns']:.1f}")


def estimate(home: Path, identifier: str) -> float:
    """The median of a benchmark, in ns."""
    for about in home.rglob("new/benchmark.json"):
        if json.loads(about.read_text())["full_id"] == identifier:
            return json.loads(about.with_name("estimates.json").read_text())["median"]["point_estimate"]
    raise Failed(f"the program has no benchmark '{identifier}'")
