"""The program behind scripts/bench, which prepares the machine for it."""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from . import cases as catalogue
from . import html, many, stages, summary, text
from .cases import Case, Settings
from .machine import CPUS, facts, say
from .paths import World
from .run import Run

# A quick run takes no sample after so many seconds, and then has its labs to remove.
QUICK_SECONDS = 74


def arguments() -> argparse.Namespace:
    """Those that scripts/bench passes on."""
    parser = argparse.ArgumentParser(prog="bench", add_help=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--workers")
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--from", dest="stored", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stages", type=Path)
    return parser.parse_args()


def ended(number: int, _frame: object) -> None:
    """A signal ends the run like an error: what is up goes down."""
    raise SystemExit(128 + number)


def chosen(cases: list[Case], only: str | None, quick: bool) -> list[Case]:
    """The cases that were asked for; without a pattern, those of this kind of run."""
    if only:
        return [case for case in cases if re.search(only, case.name)]
    return [case for case in cases if case.quick or not quick]


def main() -> int:
    """Builds, measures, reports, removes."""
    given = arguments()
    if given.stored:
        return again(given)
    begin = time.monotonic()
    settings = Settings(given.quick, given.rounds or (2 if given.quick else 5), str(given.bin / "tapir-load"))
    every = [*catalogue.traffic(settings), *catalogue.with_pods(), *catalogue.stages(), *catalogue.correctness()]
    picked = chosen(every, given.only, given.quick)
    if not picked:
        say(f"no case matches '{given.only}'; there are: {' '.join(case.name for case in every)}")
        return 2
    claim = socket.socket(socket.AF_UNIX)
    try:
        # A name without a file: it is free again as soon as this process is gone, however it went.
        claim.bind(f"\0tapir-bench-{given.name}")
    except OSError:
        say(f"another one is at work as '{given.name}'; wait for it, or use --name")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)
    world = World(given.name, given.bin, given.workers)
    run = Run(world, settings, begin + QUICK_SECONDS if given.quick and not given.only else float("inf"))
    machine = facts()
    say(f"{machine['cpus']} × {machine['model']}, Linux {machine['kernel']}, revision {machine['revision']}")
    try:
        world.down()
        everything(run, picked, given)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if given.keep and not sys.exc_info()[0]:
            say(f"The labs are up: {' '.join(world.labs())}. `scripts/lab --name LAB down` removes each.")
        else:
            world.down()
    report = {
        "machine": machine, "settings": {"quick": given.quick, "rounds": settings.rounds, "cpus": CPUS},
        "notes": world.notes, "cases": [describe(case) for case in picked], "samples": run.samples,
        "skipped": run.skipped, "seconds": round(time.monotonic() - begin, 1),
    }
    return publish(report, summary.lines(catalogue.rows(), picked, run.samples, run.skipped), given)


def again(given: argparse.Namespace) -> int:
    """Table and page of a run that is over."""
    report = json.loads(given.stored.read_text(encoding="utf-8"))
    table = [summary.Line(**row) for row in report["rows"]]
    as_html = given.html or given.stored.with_suffix(".html")
    as_html.write_text(html.page(report) + "\n", encoding="utf-8")
    print(f"{text.table(report, table)}\n\nReport: {as_html}")
    return 0


def everything(run: Run, picked: list[Case], given: argparse.Namespace) -> None:
    """The measurements, in the order in which they disturb each other least."""
    traffic = [case for case in picked if case.sample]
    names = {case.name: case for case in picked}
    paths = [path for case in traffic for path in case.paths_of(given.quick)]
    if "sha256" in names:
        paths += names["sha256"].paths
    pods = [case for case in picked if "/pods" in case.name]
    if any("veth" in case.paths for case in pods):
        paths.append("veth")
    say(f"Building {len(set(paths))} paths")
    run.world.build(paths)
    for path, reason in run.world.unavailable.items():
        say(f"  without {path}: {reason}")
    if "sha256" in names:
        run.correctness(names["sha256"], 100 if given.quick else 1000)
    if pods:
        many.measure(run, pods)
    stages.measure(run, [case for case in picked if case.name.startswith("forward/")], given.stages)
    say(f"Measuring in {run.settings.rounds} rounds")
    run.traffic(traffic)


def describe(case: Case) -> dict[str, Any]:
    """A case, for the report."""
    return {"name": case.name, "title": case.title, "metric": case.metric, "unit": case.unit, "paths": list(case.paths)}


def publish(report: dict[str, Any], table: list[summary.Line], given: argparse.Namespace) -> int:
    """The table, and the files."""
    stamp = report["machine"]["date"].replace(":", "").split("+")[0]
    as_json = given.json or given.output / f"{stamp}.json"
    as_html = given.html or given.output / f"{stamp}.html"
    full = summary.as_json(report, table)
    for path, content in ((as_json, json.dumps(full, indent=1, ensure_ascii=False)), (as_html, html.page(full))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    print(f"\n{text.table(report, table)}")
    print(f"\nAll samples: {as_json}\nReport:      {as_html}\n{report['seconds']:.0f} s", flush=True)
    return int(any(skip["kind"] == "failed" for skip in report["skipped"]))


if __name__ == "__main__":
    sys.exit(main())
