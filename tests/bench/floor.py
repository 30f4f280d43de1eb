"""The physical floor of a tunnel, on one core: encryption, and copying.

Each byte is at least encrypted once and copied twice, from the application and to the socket.
"""

import argparse
import re
import subprocess
import time

from bench.record import Table

PACKET = 1420
COPY = 256 << 10
"""Bytes copied at once: more than a first-level cache holds, less than a second-level one; a packet
that is passed on is warm too."""

SEAL = f"floor: ChaCha20-Poly1305, {PACKET} bytes"
MEMCPY = f"floor: memcpy, {COPY >> 10} KiB"


def run(arguments: argparse.Namespace) -> list[Table]:
    rates: dict[str, list[float]] = {SEAL: [], MEMCPY: []}  # bytes a CPU-second
    for _ in range(arguments.rounds):
        rates[SEAL].append(_seal(arguments.seconds))
        rates[MEMCPY].append(_memcpy(arguments.seconds))
    return [
        Table(
            "Floor of one core",
            "Gbit/s",
            {name: [each * 8 / 1e9 for each in rate] for name, rate in rates.items()},
        ),
        Table(
            "Floor of one core: cost",
            "CPU-s/GB",
            {name: [1e9 / each for each in rate] for name, rate in rates.items()},
        ),
    ]


def _seal(seconds: int) -> float:
    """By OpenSSL, which has it in assembly; by the CPU-second, as it reports by default."""
    command = ["openssl", "speed", "-mr", "-evp", "chacha20-poly1305"]
    command += ["-bytes", str(PACKET), "-seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"^\+F:.*:([\d.]+)$", done.stdout, re.M)
    assert found, done.stdout
    return float(found[1])


def _memcpy(seconds: int) -> float:
    """The C library's, by way of memoryview."""
    source, target = memoryview(bytes(COPY)), memoryview(bytearray(COPY))
    copied, start = 0, time.process_time()
    while (took := time.process_time() - start) < seconds:
        target[:] = source
        copied += COPY
    return copied / took
