"""The ways between two pods that are measured, and what builds them: scripts/lab and scripts/yardstick."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable

from .machine import REPOSITORY, Failed, inside, pids_in, run, say

# What each path is, for the reader of the report.
TITLES = {
    "same": "tapir, one node",
    "cut": "tapir, two nodes, cut",
    "uncut": "tapir, two nodes, uncut",
    "rawcut": "tapir raw, two nodes, cut",
    "veth": "kernel veth route",
    "vxlancut": "kernel VXLAN, cut",
    "vxlanuncut": "kernel VXLAN, uncut",
    "ovs": "Open vSwitch netdev",
    "ovstso": "Open vSwitch netdev, TSO",
    "plain": "tun-tap, one queue",
    "wireguard": "wireguard-go, cut",
    "many": "tapir, one node, many pods",
    "bridge": "bridge + host-local",
}
# The labs of tapir's paths: how each is made, its pods, and client and server among them.
LABS = {
    "cut": (["--cut", "--direct"], "n1-p1", "n2-p1"),
    "uncut": (["--direct"], "n1-p1", "n2-p1"),
    "rawcut": (["--cut", "--direct", "--backend", "raw"], "n1-p1", "n2-p1"),
    "same": (["--cut", "--direct"], "n1-p1", "n1-p2"),
}
# Paths of the same lab.
LAB_OF = {"same": "cut"}
LETTERS = {"veth": [""], "ovs": [""], "ovstso": [""], "plain": [""]}


@dataclass
class Route:
    """A client and a server, and the namespaces of what lies between."""

    name: str
    client: str
    server: str
    client_address: str
    server_address: str
    between: list[str]
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def daemons(self) -> list[int]:
        """Processes that forward."""
        return [pid for netns in self.between for pid in pids_in(netns)]

    def server_pids(self) -> list[int]:
        """The programs at the far end."""
        return [server.pid for server in self.servers]


@dataclass
class World:
    """Everything that is up. `name` starts the names of all its labs."""

    name: str
    bin: Path
    workers: str | None = None
    routes: dict[str, Route] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def lab(self, path: str) -> str:
        """The lab that a path is in."""
        return self.name + LAB_OF.get(path, path)

    def labs(self) -> list[str]:
        """Every lab that this world can have."""
        return [self.name, *(self.name + lab for lab in ("cut", "uncut", "rawcut", "pods", "bridge"))]

    def load(self) -> str:
        """The traffic program."""
        return str(self.bin / "tapir-load")

    def build(self, paths: Iterable[str]) -> None:
        """Makes these paths; what can't be had is noted with its reason."""
        wanted = list(dict.fromkeys(paths))
        labs = dict.fromkeys(LAB_OF.get(path, path) for path in wanted if path in LABS)
        kinds = [path for path in wanted if path not in LABS]
        with ThreadPoolExecutor(max_workers=4) as pool:
            made = list(pool.map(self._make, [*labs, *kinds]))
        reasons = dict(zip([*labs, *kinds], made))
        for path in wanted:
            reason = reasons[LAB_OF.get(path, path)]
            if reason:
                self.unavailable[path] = reason
                continue
            self.routes[path] = self._lab_route(path) if path in LABS else self._peer_route(path)
        self._serve_all()

    def _make(self, path: str) -> str | None:
        try:
            if path in LABS:
                self.up(self.name + path, LABS[path][0])
                return self._check_backend(path)
            run([str(REPOSITORY / "scripts/yardstick"), self.name, path, str(self.bin)])
            return None
        except Failed as failed:
            return failed.said

    def up(self, lab: str, options: list[str]) -> None:
        """Starts a lab."""
        known = run([str(REPOSITORY / "scripts/lab"), "help"])
        if "--backend" in options and "--backend" not in known:
            at = options.index("--backend")
            options = options[:at] + options[at + 2:]
        if self.workers and "--workers" in known:
            options = [*options, "--workers", self.workers]
        run([str(REPOSITORY / "scripts/lab"), "--name", lab, "up", "--bin", str(self.bin), *options], timeout=120)

    def _check_backend(self, path: str) -> str | None:
        status = self.status(self.name + path)
        backend, reason = status["tunnel"]["backend"], status["tunnel"]["reason"]
        self.notes[path] = f"backend {backend} ({reason}), {status['workers']} workers"
        wanted = LABS[path][0]
        if "--backend" in wanted and backend != wanted[wanted.index("--backend") + 1]:
            return f"the daemon took backend {backend}: {reason}"
        return None

    @staticmethod
    def status(lab: str) -> dict[str, Any]:
        """`tapirctl status` of a lab's first node. Its exit status tells health, so only the output counts."""
        command = [str(REPOSITORY / "scripts/lab"), "--name", lab, "ctl", "n1", "-o", "json", "status"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        return json.loads(done.stdout)

    def is_ready(self, lab: str) -> bool:
        """Whether the daemon of a lab's first node answers and has all its pods attached."""
        try:
            return bool(self.status(lab)["ready"])
        except (ValueError, KeyError):
            return False

    def _lab_route(self, path: str) -> Route:
        lab, (_, client, server) = self.lab(path), LABS[path]
        nodes = sorted({place.split("-")[0] for place in (client, server)})
        return lab_route(path, lab, client, server, nodes)

    def _peer_route(self, path: str) -> Route:
        prefix = f"tapir-{self.name}-{path}"
        between = [f"{prefix}{end}" for end in LETTERS.get(path, ["-na", "-nb"])]
        return Route(path, f"{prefix}-a", f"{prefix}-b", "10.1.0.1", "10.1.0.2", between)

    def _serve_all(self) -> None:
        for path, route in list(self.routes.items()):
            try:
                serve(route, self.load())
            except Failed as failed:
                self.unavailable[path] = str(failed)
                del self.routes[path]

    def down(self) -> None:
        """Removes all of it, also what a killed run left behind."""
        for route in self.routes.values():
            stop(route)
        self.routes.clear()
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lab_down, self.labs()))


def lab_down(lab: str) -> None:
    """Removes a lab, or what there is of it."""
    command = [str(REPOSITORY / "scripts/lab"), "--name", lab, "down"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        say(f"scripts/lab --name {lab} down: {done.stderr.strip()}")


def lab_route(name: str, lab: str, client: str, server: str, nodes: list[str]) -> Route:
    """Between two pods of a lab."""
    def address(pod: str) -> str:
        return run([str(REPOSITORY / "scripts/lab"), "--name", lab, "addr", pod, "4"]).strip()

    return Route(name, f"tapir-{lab}-{client}", f"tapir-{lab}-{server}", address(client), address(server),
                 [f"tapir-{lab}-{node}" for node in nodes])


def serve(route: Route, load: str) -> None:
    """Starts the far end, unless it runs, and waits until a packet gets through."""
    if route.servers:
        return
    for command in (["iperf3", "--server"], [load, "serve"]):
        route.servers.append(subprocess.Popen(inside(route.server, command), stdin=subprocess.DEVNULL,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                              start_new_session=True))
    listening = inside(route.server, ["ss", "-Hltn", "sport = :5201 or sport = :5202"])
    wait_for(lambda: len(run(listening).splitlines()) >= 2, f"servers of {route.name}")
    run(inside(route.client, ["ping", "-n", "-c", "1", "-W", "5", route.server_address]))


def stop(route: Route) -> None:
    """Ends the far end."""
    for server in route.servers:
        server.kill()
        server.wait()
    route.servers.clear()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: not there after {seconds:.0f} s")
        time.sleep(0.02)
