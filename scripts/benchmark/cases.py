"""What is sampled on which paths, and the rows of the table with their limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

from . import measure
from .measure import Figures
from .paths import Route


@dataclass(frozen=True)
class Case:
    """One measurement on several paths, whose samples of a round follow each other."""

    name: str
    title: str
    # The figure that is plotted, and its unit.
    metric: str
    unit: str
    paths: Sequence[str]
    sample: Callable[[Route], Figures] | None = None
    # Rounds with --quick: 0 leaves the case to the full run.
    quick: int = 0
    # Paths that --quick leaves out, and those that it samples once.
    slow: Sequence[str] = ()
    once: Sequence[str] = ()

    def paths_of(self, quick: bool, number: int = 1) -> list[str]:
        """The paths of a round."""
        left_out = [*self.slow, *(self.once if number > 1 else [])] if quick else []
        return [path for path in self.paths if path not in left_out]


@dataclass(frozen=True)
class Row:
    """A line of the table: `path` over `yardstick` in one case, or `path` alone."""

    title: str
    case: str
    metric: str
    path: str
    yardstick: str | None
    # At least this, or at most if `less` is better; nothing is demanded without it.
    limit: float | None = None
    less: bool = False
    statistic: str = "median"
    # Case of the yardstick, when it is another.
    yardstick_case: str | None = None


@dataclass(frozen=True)
class Settings:
    """What a run was asked for."""

    quick: bool
    rounds: int
    program: str

    def seconds(self, full: float, quick: float) -> float:
        """A sample's time."""
        return quick if self.quick else full


# tapir's path, its yardstick, other paths, and those that --quick leaves out.
PLACES = {
    "same": (["same", "veth"], ["ovstso", "ovs", "plain"], ["ovs", "plain"]),
    "cut": (["cut", "vxlancut"], ["rawcut", "wireguard"], []),
    "uncut": (["uncut", "vxlanuncut"], [], []),
}
WHERE = {"same": "one node", "cut": "two nodes, cut", "uncut": "two nodes, uncut"}
POD_COUNTS = (10, 100, 500)


def traffic(settings: Settings) -> list[Case]:
    """Cases on paths that are there all the time. A quick run takes them in this order, as far as its time goes."""
    cases = [case for place in ("same", "cut") for case in latency(settings, place)]
    cases += [case for place in PLACES for case in throughput(settings, place, 1)]
    cases += [case for place in ("same", "cut") for case in small_packets(settings, place)]
    cases += [case for place in PLACES for case in throughput(settings, place, 8)]
    bbr = Case("bbr/same", "TCP under BBR, 1 flow, one node", "gbit", "Gbit/s", PLACES["same"][0],
               lambda route: measure.throughput(route, settings.seconds(3, 1), congestion="bbr"), 2)
    return [*cases, bbr]


def throughput(settings: Settings, place: str, flows: int) -> list[Case]:
    """TCP as fast as it goes, and CPU at a rate that everybody reaches."""
    where, seconds, (pair, others, slow) = WHERE[place], settings.seconds, PLACES[place]
    title = f"TCP, {flows} flow{'s' * (flows > 1)}, {where}"
    once = [path for path in others if path not in slow]
    cases = [
        Case(f"tcp{flows}/{place}", title, "gbit", "Gbit/s", pair + others if flows == 1 else pair,
             lambda route: measure.throughput(route, seconds(3, 1), flows), 2, slow, once),
        Case(f"tcp{flows}back/{place}", f"{title}, from the server", "gbit", "Gbit/s", pair,
             lambda route: measure.throughput(route, seconds(3, 1), flows, reverse=True)),
    ]
    if flows == 1:
        cases.append(Case(f"cpu/{place}", f"CPU at 2 Gbit/s, {where}", "cpu_s_per_gb", "CPU s/GB", pair,
                          lambda route: measure.cpu_per_gigabyte(route, seconds(4, 1)), 2))
    return cases


def latency(settings: Settings, place: str) -> list[Case]:
    """Round trips."""
    where, seconds, program = WHERE[place], settings.seconds, settings.program
    pair = PLACES[place][0]
    others = ["rawcut"] if place == "cut" else []
    return [
        Case(f"rtt1/{place}", f"TCP round trip on one core, {where}", "p50_us", "µs", pair + others,
             lambda route: measure.round_trip_on_one_core(route, seconds(2, 0.3), program), 2, others),
        Case(f"rtt2/{place}", f"TCP round trip on two cores, {where}", "p50_us", "µs", pair + others,
             lambda route: measure.round_trip_on_two_cores(route, seconds(2, 0.3), program), 2, others),
        Case(f"rttbulk/{place}", f"TCP round trip beside a bulk flow, {where}", "p50_us", "µs", pair + others,
             lambda route: measure.round_trip_beside_bulk(route, seconds(2.5, 0.6), program), 2, others),
    ]


def small_packets(settings: Settings, place: str) -> list[Case]:
    """Packet and connection rates."""
    where, seconds, program, pair = WHERE[place], settings.seconds, settings.program, PLACES[place][0]
    precision = 0.1 if settings.quick else 0.03
    return [
        Case(f"udp64/{place}", f"UDP 64 B, rate without loss, {where}", "kpps", "kpps", pair,
             lambda route: measure.no_drop_rate(route, seconds(0.5, 0.12), program, 64, precision), 1),
        Case(f"udp1400/{place}", f"UDP 1400 B, rate without loss, {where}", "kpps", "kpps", pair,
             lambda route: measure.no_drop_rate(route, seconds(0.5, 0.12), program, 1400, precision)),
        Case(f"connect/{place}", f"TCP connections, {where}", "per_second", "1/s", pair,
             lambda route: measure.connections(route, seconds(2, 0.4), program), 2),
    ]


def with_pods() -> list[Case]:
    """Cases on the node that fills with pods; `many` takes their samples."""
    cases = []
    for count in POD_COUNTS:
        cases += [
            Case(f"tcp1/pods{count}", f"TCP, 1 flow, {count} pods on the node", "gbit", "Gbit/s", ["many", "veth"]),
            Case(f"rtt1/pods{count}", f"TCP round trip on one core, {count} pods on the node", "p50_us", "µs",
                 ["many", "veth"]),
        ]
    for count in (0, 100, 500):
        cases += [
            Case(f"add/pods{count}", f"ADD beside {count} pods", "ms", "ms", ["many", "bridge"], quick=int(count == 0)),
            Case(f"del/pods{count}", f"DEL beside {count} pods", "ms", "ms", ["many", "bridge"], quick=int(count == 0)),
        ]
    return [
        *cases,
        Case("idle/pods100", "CPU of an idle daemon, 100 pods", "cpu_percent", "% of a core", ["many"], quick=1),
        Case("restart/pods100", "kill -9 and start under load, 100 pods: longest gap", "gap_ms", "ms", ["many"], quick=1),
        Case("memory/pods500", "memory of the daemon, 500 pods", "rss_mb", "MB", ["many"]),
    ]


def stages() -> list[Case]:
    """The pure stages, which Criterion measures (benches/)."""
    return [
        Case("forward/1M", "forward and flow table, 1 M routes and flows, random", "ns", "ns", ["forward"], quick=1),
        Case("forward/10", "forward and flow table, 10 routes and flows", "ns", "ns", ["forward"], quick=1),
    ]


def correctness() -> list[Case]:
    """The bytes that arrive are those that were sent."""
    return [Case("sha256", "SHA-256 in both directions at once", "gbit", "Gbit/s", ["same", "cut", "uncut", "rawcut"],
                 quick=1)]


# Title, place, case, limits by place, whether less is better.
_PAIRS: list[tuple[str, str, str, dict[str, float | None], bool]] = [
    ("TCP, 1 flow", "tcp1", "gbit", {"same": 1.15, "cut": 0.9, "uncut": 0.95}, False),
    ("TCP, 8 flows", "tcp8", "gbit", {"same": 0.65, "cut": 1.1, "uncut": 0.6}, False),
    ("TCP, 1 flow, from the server", "tcp1back", "gbit", {"same": None, "cut": None, "uncut": None}, False),
    ("TCP, 8 flows, from the server", "tcp8back", "gbit", {"same": None, "cut": None, "uncut": None}, False),
    ("TCP under BBR, 1 flow", "bbr", "gbit", {"same": 0.75}, False),
    ("• CPU s/GB at 2 Gbit/s", "cpu", "cpu_s_per_gb", {"same": 1.6, "cut": 2.0, "uncut": 2.4}, True),
    ("• round trip on one core, p50", "rtt1", "p50_us", {"same": 1.6, "cut": 2.3}, True),
    ("round trip on one core, p99", "rtt1", "p99_us", {"same": None, "cut": None}, True),
    ("round trip on one core, p99.9", "rtt1", "p999_us", {"same": None, "cut": None}, True),
    ("round trip on two cores, p50", "rtt2", "p50_us", {"same": 1.2, "cut": 1.5}, True),
    ("round trip on two cores, p99", "rtt2", "p99_us", {"same": None, "cut": None}, True),
    ("round trip on two cores, p99.9", "rtt2", "p999_us", {"same": None, "cut": None}, True),
    ("round trip beside a bulk flow, p50", "rttbulk", "p50_us", {"same": 1.5, "cut": 2.0}, True),
    ("round trip beside a bulk flow, p99", "rttbulk", "p99_us", {"same": None, "cut": None}, True),
    ("round trip beside a bulk flow, p50 at any moment", "rttbulk", "moment_p50_us", {"same": None, "cut": None}, True),
    ("that bulk flow", "rttbulk", "bulk_gbit", {"same": None, "cut": None}, False),
    ("UDP 64 B, rate without loss", "udp64", "kpps", {"same": 0.9, "cut": 0.95}, False),
    ("UDP 1400 B, rate without loss", "udp1400", "kpps", {"same": None, "cut": None}, False),
    ("TCP connections", "connect", "per_second", {"same": 1.0, "cut": 0.8}, False),
]


def rows() -> list[Row]:
    """The table."""
    table = []
    for title, case, metric, limits, less in _PAIRS:
        for place, limit in limits.items():
            path, yardstick = PLACES[place][0]
            table.append(Row(f"{title}, {WHERE[place]}", f"{case}/{place}", metric, path, yardstick, limit, less))
    table += [
        Row("backend raw, TCP, 1 flow, two nodes, cut", "tcp1/cut", "gbit", "rawcut", "vxlancut", 0.5),
        Row("backend raw, • round trip on one core, p50", "rtt1/cut", "p50_us", "rawcut", "vxlancut", None, True),
        Row("backend raw, round trip beside a bulk flow, p50", "rttbulk/cut", "p50_us", "rawcut", "vxlancut", None, True),
        Row("TCP, 1 flow, one node, beside OVS with TSO", "tcp1/same", "gbit", "same", "ovstso", 1.2),
        Row("TCP, 1 flow, one node, beside OVS", "tcp1/same", "gbit", "same", "ovs"),
        Row("TCP, 1 flow, one node, beside tun-tap", "tcp1/same", "gbit", "same", "plain"),
        Row("TCP, 1 flow, two nodes, beside wireguard-go", "tcp1/cut", "gbit", "cut", "wireguard", 10),
        Row("forward, 1 M routes and flows, random", "forward/1M", "ns", "forward", None, 150, True),
        Row("forward, 1 M over 10 entries", "forward/1M", "ns", "forward", "forward", 1.5, True,
            yardstick_case="forward/10"),
    ]
    return table + pod_rows()


def pod_rows() -> list[Row]:
    """Rows of the node that fills."""
    table = []
    for count in POD_COUNTS:
        table += [
            Row(f"TCP, 1 flow, {count} pods on the node", f"tcp1/pods{count}", "gbit", "many", "veth"),
            Row(f"round trip on one core, p50, {count} pods", f"rtt1/pods{count}", "p50_us", "many", "veth", None, True),
        ]
    for count in (0, 100, 500):
        for verb in ("add", "del"):
            for statistic in ("p50", "p99"):
                limit = 0.7 if count == 500 and statistic == "p99" else None
                table.append(Row(f"{verb.upper()} {statistic} beside {count} pods", f"{verb}/pods{count}", "ms", "many",
                                 "bridge", limit, True, statistic))
    return table + [
        Row("daemon memory (RSS), 500 pods", "memory/pods500", "rss_mb", "many", None, 160, True),
        Row("daemon memory (PSS), 500 pods", "memory/pods500", "pss_mb", "many", None, None, True),
        Row("idle CPU, 100 pods", "idle/pods100", "cpu_percent", "many", None, 0.5, True),
        Row("kill -9 and start under load, longest gap, 100 pods", "restart/pods100", "gap_ms", "many", None, 500, True),
    ]
