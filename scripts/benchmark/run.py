"""The rounds: every path of every case once, then all again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .cases import Case, Settings
from .machine import Failed, congestion_controls, say
from .measure import digests
from .paths import TITLES, World
from .text import figure


@dataclass
class Run:
    """What has been measured so far."""

    world: World
    settings: Settings
    # When a quick run stops taking samples, in seconds of time.monotonic().
    deadline: float = float("inf")
    samples: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, case: str, path: str, reason: str, kind: str = "skipped") -> None:
        """Notes why there is no figure, once."""
        entry = {"case": case, "path": path, "kind": kind, "reason": reason}
        if entry in self.skipped:
            return
        self.skipped.append(entry)
        if path:
            say(f"  {case:<18} {TITLES.get(path, path)}: {reason}")

    def add(self, case: Case, path: str, number: int, figures: dict[str, float]) -> None:
        """Keeps a sample."""
        self.samples.append({"case": case.name, "path": path, "round": number, "figures": figures,
                             "at": round(time.time(), 3)})

    def rounds_of(self, case: Case) -> int:
        """How often a case is sampled."""
        return min(case.quick, self.settings.rounds) if self.settings.quick else self.settings.rounds

    def traffic(self, cases: list[Case]) -> None:
        """All cases on the paths that are up."""
        for number in range(1, self.settings.rounds + 1):
            for case in cases:
                if number <= self.rounds_of(case):
                    self.round(case, number)

    def round(self, case: Case, number: int) -> None:
        """One case on each of its paths. The first path changes from round to round, so that none always profits."""
        if case.name.startswith("bbr") and "bbr" not in congestion_controls():
            for path in case.paths:
                self.skip(case.name, path, "this kernel offers no BBR")
            return
        if time.monotonic() > self.deadline:
            if not any(skip["path"] == "" for skip in self.skipped):
                say("  no time left: the rest is for a full run")
            self.skip(case.name, "", "no time left in a quick run")
            return
        paths = case.paths_of(self.settings.quick, number)
        shift = (number - 1) % len(paths)
        told = []
        for path in [*paths[shift:], *paths[:shift]]:
            figures = self.sample(case, path)
            if figures:
                self.add(case, path, number, figures)
                told.append(f"{TITLES.get(path, path)} {figure(figures[case.metric])}")
        if told:
            say(f"  round {number}  {case.name:<15} {case.unit:>9}:  {'   '.join(told)}")

    def sample(self, case: Case, path: str) -> dict[str, float] | None:
        """A path's figures, or nothing, with the reason noted."""
        if path in self.world.unavailable:
            self.skip(case.name, path, self.world.unavailable[path])
            return None
        try:
            assert case.sample
            return case.sample(self.world.routes[path])
        except (Failed, KeyError, OSError, ValueError) as failed:
            self.skip(case.name, path, f"{type(failed).__name__}: {failed}" if not isinstance(failed, Failed) else str(failed),
                      "failed")
            return None

    def correctness(self, case: Case, megabytes: int) -> None:
        """Compares what is sent with what arrives."""
        for path in case.paths:
            if path in self.world.unavailable:
                self.skip(case.name, path, self.world.unavailable[path])
                continue
            try:
                figures = digests(self.world.routes[path], megabytes)
            except Failed as failed:
                self.skip(case.name, path, str(failed), "failed")
                continue
            self.add(case, path, 1, figures)
            say(f"  {case.name}: {megabytes} MB each way on {TITLES[path]}: the same bytes")

    def failed(self) -> bool:
        """Whether something did not work that should have."""
        return any(skip["kind"] == "failed" for skip in self.skipped)
