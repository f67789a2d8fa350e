"""Sends many bytes that never repeat, or receives them, and prints their SHA-256."""

from __future__ import annotations

import hashlib
import random
import socket
import sys

PORT = 5203
BLOCK = 1_000_000


def blocks(megabytes: int, seed: int):
    """Blocks that differ in their place, so that one lost, doubled or swapped changes the sum."""
    block = random.Random(seed).randbytes(BLOCK - 8)
    for number in range(megabytes):
        yield number.to_bytes(8, "big") + block


def send(address: str, megabytes: int, seed: int) -> str:
    """To a receiver that waits there."""
    digest = hashlib.sha256()
    with socket.create_connection((address, PORT), timeout=30) as stream:
        for block in blocks(megabytes, seed):
            digest.update(block)
            stream.sendall(block)
    return digest.hexdigest()


def receive() -> str:
    """From one sender, up to the end of its stream."""
    digest = hashlib.sha256()
    with socket.create_server(("", PORT)) as listener:
        print("ready", flush=True)
        listener.settimeout(30)
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(30)
            while data := stream.recv(1 << 20):
                digest.update(data)
    return digest.hexdigest()


if __name__ == "__main__":
    print(receive() if sys.argv[1] == "receive" else send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
