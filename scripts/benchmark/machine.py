"""Commands, namespaces and CPU time of this machine."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
CPUS = sorted(os.sched_getaffinity(0))


class Failed(Exception):
    """A command or a measurement that did not work, in words for the report; `said` are those of a command alone."""

    def __init__(self, message: str, said: str | None = None) -> None:
        super().__init__(message)
        self.said = said or message


BEGIN = time.monotonic()


def say(text: str) -> None:
    """A line of progress, with the seconds gone by."""
    print(f"{time.monotonic() - BEGIN:5.0f} s  {text}", file=sys.stderr, flush=True)


def run(command: Sequence[str], timeout: float = 60, **options: Any) -> str:
    """The output of a command, which has to succeed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)}: no end after {timeout:.0f} s") from None
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"status {done.returncode}"]
        raise Failed(f"{' '.join(command)}: {said[-1]}", said[-1])
    return done.stdout


def inside(netns: str, command: Iterable[str]) -> list[str]:
    """The command, to run in a namespace."""
    return ["ip", "netns", "exec", netns, *command]


def last_json(output: str) -> Any:
    """The last line, as JSON."""
    return json.loads(output.strip().splitlines()[-1])


def pids_in(netns: str) -> list[int]:
    """Processes of a namespace."""
    return [int(pid) for pid in run(["ip", "netns", "pids", netns]).split()]


@contextlib.contextmanager
def on_cpus(pids: Iterable[int], cpus: Iterable[int]) -> Iterator[None]:
    """All threads of these processes stay on these CPUs for the time being."""
    before: dict[int, set[int]] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            before.update((int(task), os.sched_getaffinity(int(task))) for task in os.listdir(f"/proc/{pid}/task"))
    wanted = set(cpus)
    try:
        for task in before:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, wanted)
        yield
    finally:
        for task, mask in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, mask)


class CpuClock:
    """CPU seconds that the whole machine spent since the clock was made, softirqs included.

    What is not idle was spent: the idle time in /proc/stat is exact, while the rest of it is sampled by ticks. Time
    that the hypervisor gave to others is nobody's here.
    """

    def __init__(self) -> None:
        self.begin, self.unspent = time.monotonic(), self._unspent()

    @staticmethod
    def _unspent() -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        idle, iowait, steal = int(fields[3]), int(fields[4]), int(fields[7])
        return (idle + iowait + steal) / TICKS_PER_SECOND

    def spent(self) -> float:
        """CPU seconds so far."""
        return (time.monotonic() - self.begin) * (os.cpu_count() or 1) - (self._unspent() - self.unspent)

    def elapsed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.begin


def busy_cpus(seconds: float = 0.5) -> float:
    """How many CPUs are at work while this program only waits."""
    clock = CpuClock()
    time.sleep(seconds)
    return max(0.0, clock.spent() / clock.elapsed())


def cpu_seconds_of(pid: int) -> float:
    """CPU time of a process so far, of all its threads."""
    times = (Path(f"/proc/{pid}/task/{task}/schedstat").read_text() for task in os.listdir(f"/proc/{pid}/task"))
    return sum(int(line.split()[0]) for line in times) / 1e9


def memory_of(pid: int) -> dict[str, float]:
    """Resident and proportional memory of a process, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) / 1000 for line in lines[1:] if line.endswith("kB")}
    return {"rss_mb": sizes["Rss:"] * 1.024, "pss_mb": sizes["Pss:"] * 1.024}


def facts() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return {
        "cpus": len(CPUS),
        "model": model,
        "kernel": platform.release(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "congestion_default": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        # What others do on this machine: a figure taken beside it is not to be trusted, nor is its ratio.
        "busy_cpus_before": round(busy_cpus(), 2),
    }


def revision() -> str:
    """The commit that is measured, with a mark when there are changes beside it."""
    git = ["git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY)]
    try:
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"])
        return run([*git, "rev-parse", "--short=12", "HEAD"]).strip() + (" with changes" if changed else "")
    except Failed:
        return "unknown"


def congestion_controls() -> list[str]:
    """What this kernel offers."""
    return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
