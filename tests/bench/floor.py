"""The physical floor of a tunnel, on one core: encryption and copying.

Each byte is encrypted at least once, and copied at least twice: from the application and to the
socket.
"""

import argparse
import re
import subprocess
import time

from bench.record import Table

PACKET = 1420
COPY = 256 << 10
"""Bytes per copy: more than fits a first-level cache, less than fits a second-level one. A packet
on its way is in the cache, too."""

SEAL = f"floor: ChaCha20-Poly1305, {PACKET} bytes"
MEMCPY = f"floor: memcpy, {COPY >> 10} KiB"


def run(arguments: argparse.Namespace) -> list[Table]:
    rates: dict[str, list[float]] = {SEAL: [], MEMCPY: []}  # bytes per CPU-second
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
    """Measure OpenSSL's assembly, per CPU-second, which is what it reports by default."""
    command = ["openssl", "speed", "-mr", "-evp", "chacha20-poly1305"]
    command += ["-bytes", str(PACKET), "-seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"^\+F:.*:([\d.]+)$", done.stdout, re.M)
    assert found, done.stdout
    return float(found[1])


def _memcpy(seconds: int) -> float:
    """Measure the C library's memcpy, through memoryview."""
    source, target = memoryview(bytes(COPY)), memoryview(bytearray(COPY))
    copied, start = 0, time.process_time()
    while (took := time.process_time() - start) < seconds:
        target[:] = source
        copied += COPY
    return copied / took
