"""Ten thousand services in a node's folder: how long until packets follow, and until they follow a change.

Runs in a pod's network namespace: FOLDER BACKEND NETNS PID CHANGES. Prints shell assignments, times in ms.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

SERVICES, ENDPOINTS, A_FILE = 10_000, 10, 10
VIP = ("10.96.0.10", 53)
# Answers with the port that it was reached at.
BACKEND = """
import select, socket
sockets = []
for port in (9001, 9002):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("0.0.0.0", port))
    sockets.append(s)
print("ready", flush=True)
while True:
    for s in select.select(sockets, [], [])[0]:
        _, peer = s.recvfrom(64)
        s.sendto(str(s.getsockname()[1]).encode(), peer)
"""


def service(name: str, address: str, protocol: str, port: int) -> str:
    """A Service."""
    return (f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n"
            f"  clusterIP: {address}\n  ports:\n  - {{name: main, protocol: {protocol}, port: {port}}}\n---\n")


def endpoints(name: str, addresses: list[str], protocol: str, port: int) -> str:
    """Its EndpointSlice."""
    head = (f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: bench\n"
            f"  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports:\n"
            f"- {{name: main, protocol: {protocol}, port: {port}}}\nendpoints:\n")
    rows = (f"- {{addresses: [{address}], conditions: {{ready: true}}}}\n" for address in addresses)
    return head + "".join(rows) + "---\n"


def write(folder: Path) -> None:
    """All services but the one that is asked."""
    texts: dict[int, list[str]] = {}
    for number in range(1, SERVICES):
        name, first = f"s{number}", number * ENDPOINTS
        pods = [f"10.244.{(first + one) // 250 % 250 + 2}.{(first + one) % 250 + 2}" for one in range(ENDPOINTS)]
        text = service(name, f"10.{97 + number // 60_000}.{number // 250}.{number % 250 + 1}", "TCP", 80)
        texts.setdefault(number // A_FILE, []).append(text + endpoints(name, pods, "TCP", 8080))
    for number, text in texts.items():
        (folder / f"{number:04}.yaml").write_text("".join(text))
    (folder / "asked.yaml").write_text(service("asked", VIP[0], "UDP", VIP[1]))


def point(folder: Path, backend: str, port: int) -> Path:
    """The asked service's endpoint is there from now on."""
    new, path = folder / "endpoint.new", folder / "endpoint.yaml"
    new.write_text(endpoints("asked", [backend], "UDP", port))
    new.rename(path)
    return path


def cpu_ms(pid: int) -> float:
    """What all threads of a process have run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def wait_for(port: int, patience: float = 60) -> float:
    """When the service first leads to that port."""
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.connect(VIP)
    end = time.time() + patience
    while time.time() < end:
        try:
            asking.send(b"?")
            if select.select([asking], [], [], 0.0005)[0] and asking.recv(64) == str(port).encode():
                return time.time()
        except ConnectionRefusedError:
            time.sleep(0.0005)
    raise SystemExit(f"the service does not lead to port {port}")


def main() -> None:
    """Measures."""
    folder, backend, netns = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    pid, changes = int(sys.argv[4]), int(sys.argv[5])
    server = subprocess.Popen(["ip", "netns", "exec", netns, sys.executable, "-c", BACKEND], stdout=subprocess.PIPE)
    try:
        assert server.stdout and server.stdout.readline() == b"ready\n"
        made = folder.with_name("made")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        write(made)
        point(made, backend, 9001)
        folder.rmdir()
        spent, begin = cpu_ms(pid), time.time()
        made.rename(folder)
        load_ms = (wait_for(9001) - begin) * 1e3
        print(f"scale_load_ms={load_ms:.0f}\nscale_load_cpu_ms={cpu_ms(pid) - spent:.0f}")
        time.sleep(1.5)
        spent = cpu_ms(pid)
        time.sleep(2)
        print(f"scale_idle_cpu_ms={(cpu_ms(pid) - spent) / 2:.1f}")
        polled, read = [], []
        for number in range(changes):
            port = 9002 - number % 2
            # The last change ended with the polling: no step with it.
            time.sleep(random.uniform(0.05, 1.05))
            begin = time.time()
            path = point(folder, backend, port)
            end = wait_for(port)
            polled.append((end - begin) * 1e3)
            # The kernel notes when it was read for the first time.
            read.append((end - os.stat(path).st_atime) * 1e3)
        print(f"scale_change_ms={statistics.median(read):.1f}\nscale_change_worst_ms={max(read):.1f}")
        print(f"scale_change_polled_ms={statistics.median(polled):.0f}")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
