"""One sample: a function of a path and a time, giving figures by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

from .machine import CPUS, REPOSITORY, CpuClock, Failed, inside, last_json, on_cpus, run
from .paths import Route

Figures = dict[str, float]
# CPU per gigabyte is taken at this rate.
EQUAL_RATE = 2e9
ROUND_TRIP = ("p50_us", "p99_us", "p999_us", "max_us", "moment_p50_us", "moment_p99_us")


def iperf3(route: Route, seconds: float, *options: str) -> list[str]:
    """The command of a client; iperf3 takes whole seconds."""
    return inside(route.client, ["iperf3", "--client", route.server_address, "--json", "--connect-timeout", "3000",
                                 "--time", str(max(1, math.ceil(seconds))), *options])


def received(output: str) -> Figures:
    """What an iperf3 client reports."""
    report = json.loads(output)
    if "error" in report:
        raise Failed(report["error"])
    end = report["end"]["sum_received"]
    return {"gbit": end["bits_per_second"] / 1e9, "retransmits": float(report["end"]["sum_sent"].get("retransmits", 0))}


def start_iperf3(command: list[str]) -> subprocess.Popen[str]:
    """In the background."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish_iperf3(client: subprocess.Popen[str]) -> Figures:
    """Waits for it."""
    try:
        output, _ = client.communicate(timeout=60)
    except BaseException:
        client.kill()
        client.wait()
        raise
    return received(output)


def throughput(route: Route, seconds: float, flows: int = 1, congestion: str = "cubic", reverse: bool = False) -> Figures:
    """TCP as fast as it goes, in Gbit/s at the receiver."""
    options = ["--congestion", congestion, "--parallel", str(flows), *(["--reverse"] if reverse else [])]
    for attempt in range(10):
        try:
            return finish_iperf3(start_iperf3(iperf3(route, seconds, *options)))
        except Failed as failed:
            # A server is busy for a moment after it has served.
            if "busy" not in str(failed) or attempt == 9:
                raise
            time.sleep(0.2)
    raise AssertionError("the last attempt raises")


def cpu_per_gigabyte(route: Route, seconds: float) -> Figures:
    """CPU seconds of the whole machine for each GB that arrives, at a rate that all paths reach."""
    whole = max(1, math.ceil(seconds))
    client = start_iperf3(iperf3(route, whole, "--congestion", "cubic", "--bitrate", str(int(EQUAL_RATE))))
    # Starting and ending programs costs CPU as well, so the middle is looked at.
    time.sleep(0.15)
    clock = CpuClock()
    time.sleep(whole - 0.2)
    spent, elapsed = clock.spent(), clock.elapsed()
    gbit = finish_iperf3(client)["gbit"]
    return {"cpu_s_per_gb": spent / (gbit / 8 * elapsed), "gbit": gbit}


def load(route: Route, program: str, *arguments: str, cpu: int | None = None, timeout: float = 120) -> dict:
    """Runs a client of tapir-load."""
    pin = [] if cpu is None else ["--cpu", str(cpu)]
    return last_json(run(inside(route.client, [program, *pin, *arguments]), timeout=timeout))


def round_trip(route: Route, seconds: float, program: str, client_cpu: int | None = None) -> Figures:
    """TCP ping-pong with 64 bytes."""
    report = load(route, program, "round-trip", route.server_address, "--seconds", str(seconds), cpu=client_cpu)
    return {name: report[name] for name in ROUND_TRIP}


def round_trip_on_one_core(route: Route, seconds: float, program: str) -> Figures:
    """Everything on one CPU: both ends, daemons, and with them the kernel's softirqs."""
    cpu = CPUS[-1]
    with on_cpus([*route.daemons(), *route.server_pids()], [cpu]):
        return round_trip(route, seconds, program, cpu)


def round_trip_on_two_cores(route: Route, seconds: float, program: str) -> Figures:
    """Client and server each on a CPU of its own, daemons where the scheduler wants them."""
    if len(CPUS) < 2:
        raise Failed("this machine has one CPU")
    with on_cpus(route.server_pids(), [CPUS[1]]):
        return round_trip(route, seconds, program, CPUS[0])


def round_trip_beside_bulk(route: Route, seconds: float, program: str) -> Figures:
    """Between the same pods as a bulk flow that goes as fast as it can; nothing is pinned."""
    bulk = start_iperf3(iperf3(route, seconds + 0.4, "--congestion", "cubic"))
    time.sleep(0.3)
    try:
        figures = round_trip(route, seconds, program)
    finally:
        beside = finish_iperf3(bulk)
    return {**figures, "bulk_gbit": beside["gbit"]}


def no_drop_rate(route: Route, seconds: float, program: str, size: int, precision: float) -> Figures:
    """The highest rate of datagrams at which at most 0.1 % is lost."""
    report = load(route, program, "udp", route.server_address, "--find-rate", "--size", str(size),
                  "--seconds", str(seconds), "--precision", str(precision))
    return {"kpps": report["rate"] / 1e3, "gbit": report["rate"] * size * 8 / 1e9,
            "sender_limited": float(report["sender_limited"])}


def connections(route: Route, seconds: float, program: str) -> Figures:
    """TCP connections per second."""
    report = load(route, program, "connect", route.server_address, "--seconds", str(seconds))
    return {"per_second": report["per_second"], "p50_us": report["p50_us"], "p99_us": report["p99_us"]}


def digests(route: Route, megabytes: int) -> Figures:
    """The same bytes arrive, in both directions at once; raises when they don't."""
    ends = [(route.client, route.server, route.server_address), (route.server, route.client, route.client_address)]
    def start(netns: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(inside(netns, [sys.executable, "-m", "benchmark.digest", *words]),
                                stdout=subprocess.PIPE, text=True, cwd=REPOSITORY / "scripts")

    children: list[subprocess.Popen[str]] = []
    try:
        for _, receiver, _ in ends:
            children.append(start(receiver, "receive"))
        for child in children[:2]:
            if not child.stdout or child.stdout.readline().strip() != "ready":
                raise Failed(f"{route.name}: the receiver does not start")
        begin = time.monotonic()
        for number, (sender, _, address) in enumerate(ends):
            children.append(start(sender, "send", address, str(megabytes), str(number)))
        got = [child.communicate(timeout=120)[0].strip() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    if not got[0] or not got[1] or got[:2] != got[2:]:
        raise Failed(f"{route.name}: other bytes arrived than were sent: {got}")
    return {"gbit": 2 * megabytes * 8e6 / (time.monotonic() - begin) / 1e9}
