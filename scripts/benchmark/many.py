"""A node that fills with pods, beside one whose pods the bridge plugin attaches: ADD and DEL, throughput and latency of
one pair, memory, idle CPU, and the gap of a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import measure as sampling
from .cases import Case
from .machine import REPOSITORY, Failed, cpu_seconds_of, inside, last_json, memory_of, run, say
from .paths import Route, lab_route, serve, wait_for
from .run import Run

STATE = Path("/run/tapir-lab")
BRIDGE_PLUGINS = Path("/usr/lib/cni")
# Pods of a node come from this much more than a lab's /24.
POD_RANGE = "10.244.0.0/16"
# ADDs and DELs for a distribution.
CALLS = {"full": 100, "quick": 15}
RESTART_SECONDS = 3.0


@dataclass
class Node:
    """A node's namespace, and a plugin that attaches pods there."""

    lab: str
    plugin: Path
    config: dict[str, Any]
    pods: int = 0
    caller: subprocess.Popen[str] | None = None

    def netns(self) -> str:
        """Where it is."""
        return f"tapir-{self.lab}-n1"

    def pod(self, number: int | str) -> str:
        """The namespace of a pod that this program attaches."""
        return f"{self.netns()}-q{number}"

    def call(self, command: str, pod: str) -> float:
        """ADD or DEL; tells the time in ms."""
        if self.caller is None:
            this = inside(self.netns(), [sys.executable, "-m", "benchmark.caller"])
            self.caller = subprocess.Popen(this, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                           cwd=REPOSITORY / "scripts")
        environment = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": pod, "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.plugin.parent), "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={pod}",
            "PATH": os.environ.get("PATH", ""),
        }
        asked = {"plugin": str(self.plugin), "environment": environment, "config": json.dumps(self.config)}
        assert self.caller.stdin and self.caller.stdout
        self.caller.stdin.write(json.dumps(asked) + "\n")
        self.caller.stdin.flush()
        answer = json.loads(self.caller.stdout.readline() or '{"ok": false, "said": "the caller ended", "ms": 0}')
        if not answer["ok"]:
            raise Failed(f"{self.plugin.name}: {command} of {pod}: {answer['said'].strip()}")
        return answer["ms"]

    def fill(self, count: int) -> None:
        """Attaches pods until there are so many."""
        new = [self.pod(number) for number in range(self.pods + 1, count + 1)]
        make_namespaces(new)
        for pod in new:
            self.call("ADD", pod)
        self.pods = max(self.pods, count)

    def close(self) -> None:
        """Ends the caller."""
        if self.caller:
            self.caller.kill()
            self.caller.wait()


@dataclass
class Nodes:
    """Both nodes; a side that can't be had is missing, with its reason."""

    there: dict[str, Node] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def drop(self, path: str, reason: str) -> None:
        """Goes on without one."""
        self.reasons[path] = reason
        self.there.pop(path).close()

    def close(self) -> None:
        """Ends what they run."""
        for node in self.there.values():
            node.close()


def make_namespaces(names: list[str]) -> None:
    """Many at once."""
    run(["ip", "-batch", "-"], input="".join(f"netns add {name}\n" for name in names))


def tapir_node(run_: Run) -> Node:
    """A lab of one node with a range that holds all pods, and two pods that traffic runs between."""
    world, lab = run_.world, run_.world.name + "pods"
    world.up(lab, ["--nodes", "1", "--pods", "0"])
    script = [str(REPOSITORY / "scripts/lab"), "--name", lab]
    config = Path(run([*script, "config", "n1"]).strip())
    run([*script, "kill", "n1"])
    config.write_text(config.read_text().replace("10.244.1.0/24", POD_RANGE))
    run([*script, "start", "n1"])
    for pod in ("p1", "p2"):
        run([*script, "attach", "n1", pod])
    plugin = {"cniVersion": "1.0.0", "name": "tapir", "type": "tapir-cni", "socket": str(STATE / lab / "n1/tapird.sock")}
    return Node(lab, world.bin / "tapir-cni", plugin)


def bridge_node(run_: Run) -> Node:
    """A namespace with the reference plugins' bridge."""
    lab = run_.world.name + "bridge"
    if not (BRIDGE_PLUGINS / "bridge").exists():
        raise Failed("no bridge plugin: package containernetworking-plugins")
    make_namespaces([f"tapir-{lab}-n1"])
    run(["ip", "-n", f"tapir-{lab}-n1", "link", "set", "lo", "up"])
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/16"}]], "dataDir": str(STATE / lab / "ipam"),
            "routes": [{"dst": "0.0.0.0/0"}]}
    config = {"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    return Node(lab, BRIDGE_PLUGINS / "bridge", config)


def measure(run_: Run, cases: list[Case]) -> None:
    """Fills the nodes step by step, and takes each step's samples."""
    nodes = Nodes()
    needed = {path for case in cases for path in case.paths}
    try:
        for path, make in (("many", tapir_node), ("bridge", bridge_node)):
            if path in needed:
                try:
                    nodes.there[path] = make(run_)
                except Failed as failed:
                    nodes.reasons[path] = str(failed)
        for count in sorted({pods_of(case) for case in cases}):
            step(run_, nodes, count, [case for case in cases if pods_of(case) == count])
    finally:
        nodes.close()


def pods_of(case: Case) -> int:
    """How many pods a case wants on the node."""
    return int(case.name.rpartition("/pods")[2])


def step(run_: Run, nodes: Nodes, count: int, cases: list[Case]) -> None:
    """The samples beside so many pods."""
    wanted = {path for case in cases for path in case.paths}
    for path, node in list(nodes.there.items()):
        if path in wanted and count:
            say(f"  {count} pods by {node.plugin.name}")
            try:
                node.fill(count)
            except Failed as failed:
                nodes.drop(path, str(failed))
    for case in cases:
        for path in case.paths:
            if path in nodes.reasons:
                run_.skip(case.name, path, nodes.reasons[path])
    named = {case.name.split("/")[0]: case for case in cases}
    if "add" in named or "del" in named:
        add_and_del(run_, nodes, named)
    tapir = nodes.there.get("many")
    if tapir is None:
        return
    # Memory is looked at when traffic has been through.
    pair = [named[verb] for verb in ("tcp1", "rtt1") if verb in named]
    if pair:
        beside_veth(run_, tapir, pair)
    for verb, sample in SINGLE.items():
        if verb in named:
            single(run_, named[verb], lambda sample=sample: sample(run_, tapir))


def add_and_del(run_: Run, nodes: Nodes, named: dict[str, Case]) -> None:
    """Calls the plugins in turns, on a namespace each time new."""
    calls = CALLS["quick" if run_.settings.quick else "full"]
    spare = {path: [node.pod(f"s{number}") for number in range(calls)] for path, node in nodes.there.items()}
    some = named.get("add") or named["del"]
    make_namespaces([name for names in spare.values() for name in names])
    try:
        for number in range(calls):
            for verb in ("add", "del"):
                for path, node in list(nodes.there.items()):
                    try:
                        took = node.call(verb.upper(), spare[path][number])
                    except Failed as failed:
                        run_.skip(some.name, path, str(failed), "failed")
                        nodes.drop(path, str(failed))
                        continue
                    if verb in named:
                        run_.add(named[verb], path, number, {"ms": took})
    finally:
        run(["ip", "-force", "-batch", "-"],
            input="".join(f"netns delete {name}\n" for names in spare.values() for name in names))
    say(f"  {some.name.partition('/')[2]}: {calls} ADDs and DELs")


def single(run_: Run, case: Case, sample) -> None:
    """A figure of tapir alone."""
    for number in range(1, run_.rounds_of(case) + 1):
        try:
            figures = sample()
        except (Failed, OSError) as failed:
            run_.skip(case.name, "many", str(failed), "failed")
            return
        run_.add(case, "many", number, figures)
        say(f"  round {number}  {case.name:<15} {case.unit:>9}:  {figures[case.metric]:.2f}")


def daemon(node: Node) -> int:
    """The pid of its tapird."""
    return int((STATE / node.lab / "n1/tapird.pid").read_text())


def idle(run_: Run, node: Node) -> sampling.Figures:
    """CPU of the daemon while nothing is sent."""
    seconds = 2.0 if run_.settings.quick else 10.0
    time.sleep(0.5)
    before, begin = cpu_seconds_of(daemon(node)), time.monotonic()
    time.sleep(seconds)
    return {"cpu_percent": 100 * (cpu_seconds_of(daemon(node)) - before) / (time.monotonic() - begin)}


def memory(_: Run, node: Node) -> sampling.Figures:
    """Of the daemon."""
    return memory_of(daemon(node))


def route_of(run_: Run, node: Node) -> Route:
    """Between the two pods that traffic runs between; the far end runs."""
    if "many" not in run_.world.routes:
        run_.world.routes["many"] = lab_route("many", node.lab, "n1-p1", "n1-p2", ["n1"])
        serve(run_.world.routes["many"], run_.world.load())
    return run_.world.routes["many"]


def restart(run_: Run, node: Node) -> sampling.Figures:
    """Kills the daemon under load and starts it again at once: the longest time without a byte at the receiver."""
    route = route_of(run_, node)
    command = inside(route.client, [run_.world.load(), "tcp", route.server_address, "--rate", "1G", "--seconds",
                                    str(RESTART_SECONDS)])
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.8)
        begin = time.monotonic()
        start_again(run_, node)
        ready_after = time.monotonic() - begin
        output, _ = sender.communicate(timeout=60)
    finally:
        sender.kill()
        sender.wait()
    if sender.returncode != 0:
        raise Failed("the flow broke with the daemon")
    report = last_json(output)
    return {"gap_ms": report["longest_gap_ms"], "ready_ms": 1e3 * ready_after}


def start_again(run_: Run, node: Node) -> None:
    """kill -9 and start, with nothing between the two but the end of the process."""
    pid, state = daemon(node), STATE / node.lab / "n1"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), "the end of the daemon")
    with (state / "tapird.log").open("a") as log:
        started = subprocess.Popen(
            inside(node.netns(), [str(run_.world.bin / "tapird"), "--config", str(state / "tapird.toml")]),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (state / "tapird.pid").write_text(f"{started.pid}\n")
    wait_for(lambda: run_.world.is_ready(node.lab), "the daemon's return", 20)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def beside_veth(run_: Run, node: Node, cases: list[Case]) -> None:
    """One pair of pods beside the kernel's, which have the machine to themselves."""
    try:
        route = route_of(run_, node)
    except Failed as failed:
        run_.skip(cases[0].name, "many", str(failed), "failed")
        return
    for number in range(1, run_.settings.rounds + 1):
        for case in cases:
            for path in case.paths:
                here = route if path == "many" else run_.world.routes.get(path)
                if here is None:
                    run_.skip(case.name, path, run_.world.unavailable.get(path, "not built"))
                    continue
                try:
                    run_.add(case, path, number, sample_pair(run_, case, here))
                except Failed as failed:
                    run_.skip(case.name, path, str(failed), "failed")
    say(f"  {', '.join(case.name for case in cases)}: {run_.settings.rounds} rounds")


def sample_pair(run_: Run, case: Case, route: Route) -> sampling.Figures:
    """Throughput, or round trips on one core."""
    if case.name.startswith("tcp1"):
        return sampling.throughput(route, run_.settings.seconds(2, 1))
    return sampling.round_trip_on_one_core(route, run_.settings.seconds(1, 0.3), run_.settings.program)


SINGLE = {"idle": idle, "memory": memory, "restart": restart}
