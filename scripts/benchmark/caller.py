"""Runs CNI plugins inside a node's namespace, one for each line of JSON on standard input, and tells their times.

A plugin is timed from before it is started until it has ended, as its runtime waits for it. Starting `ip netns exec`
for each would cost more than a fast plugin does, so this program is started there once.
"""

from __future__ import annotations

import json
import os
import sys
import time


def call(plugin: str, environment: dict[str, str], config: str) -> dict[str, object]:
    """One plugin, from start to end."""
    given, said = os.memfd_create("stdin"), os.memfd_create("stdout")
    try:
        os.write(given, config.encode())
        os.lseek(given, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, said, 1)]
        begin = time.perf_counter()
        pid = os.posix_spawn(plugin, [plugin], environment, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter() - begin
        return {"ms": took * 1e3, "ok": status == 0, "said": os.pread(said, 1 << 16, 0).decode(errors="replace")}
    except OSError as error:
        return {"ms": 0, "ok": False, "said": str(error)}
    finally:
        os.close(given)
        os.close(said)


def main() -> None:
    """Until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(call(asked["plugin"], asked["environment"], asked["config"])), flush=True)


if __name__ == "__main__":
    main()
