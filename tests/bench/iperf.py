"""Transfers by iperf3 between a contender's client and the far end's server."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.contenders import Contender
from bench.usage import cpu_seconds, machine_cpu_seconds

TIMEOUT = 30.0
"""Seconds, in addition to the transfer's."""

DATAGRAM = 1200
"""Bytes, like QUIC's: such a datagram fits any tunnel."""


@dataclass(frozen=True)
class Kind:
    protocol: str
    direction: str
    """`up` means from the client to the far end."""
    streams: int

    def __str__(self) -> str:
        """Such as "TCP up, 1 stream"."""
        noun = "stream" if self.streams == 1 else "streams"
        return f"{self.protocol} {self.direction}, {self.streams} {noun}"


@dataclass(frozen=True)
class Transfer:
    gbits: float
    """Received by the application, per second."""
    lost: float
    """Per cent of the bytes sent; TCP retransmits them."""
    client_cpu: float | None
    """CPU-seconds of the contender's process per received GB (1e9 bytes)."""
    far_cpu: float | None
    """CPU-seconds of the far end's engine, if there is one."""
    machine_cpu: float
    """CPU-seconds of the whole machine: both ends, iperf3 at both ends, and the kernel."""


def transfer(contender: Contender, port: int, kind: Kind, seconds: int) -> Transfer:
    before = _cpu(contender)
    end = _end_of([*_client(contender, port, kind), "--json", f"--time={seconds}"], seconds)
    after = _cpu(contender)
    received, sent = end["sum_received"], end["sum_sent"]
    per_gb = {who: (after[who] - before[who]) / received["bytes"] * 1e9 for who in before}
    return Transfer(
        gbits=received["bits_per_second"] / 1e9,
        lost=100 * (1 - received["bytes"] / sent["bytes"]),
        client_cpu=per_gb.get("client"),
        far_cpu=per_gb.get("far"),
        machine_cpu=per_gb["machine"],
    )


@contextlib.contextmanager
def load(contender: Contender, port: int, kind: Kind) -> Iterator[None]:
    """Run a transfer until the block ends."""
    command = [*_client(contender, port, kind), "--time=0", "--interval=0.1", "--forceflush"]
    while True:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout and client.stderr
            if any("bits/sec" in line for line in client.stdout):  # something has arrived
                yield
                client.terminate()
                return
            error = client.stderr.read()
            assert _is_not_ready(error), error


def _client(contender: Contender, port: int, kind: Kind) -> list[str]:
    """Return the command line. UDP is sent as fast as the sender can."""
    options = [f"--port={port}", f"--parallel={kind.streams}"]
    if kind.protocol == "UDP":
        options += ["--udp", "--bitrate=0", f"--length={DATAGRAM}"]
    if kind.direction == "down":
        options.append("--reverse")
    return contender.command("iperf3", "--client", contender.server, *options)


def _cpu(contender: Contender) -> dict[str, float]:
    pids = {"client": contender.engine, "far": contender.far_engine}
    used = {who: cpu_seconds(pid) for who, pid in pids.items() if pid is not None}
    return used | {"machine": machine_cpu_seconds()}


def _end_of(command: list[str], seconds: int) -> dict[str, Any]:
    """Run the command, and return the last part of its result."""
    while True:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + TIMEOUT)
        result = json.loads(done.stdout)
        if "error" not in result:
            return dict(result["end"])
        assert _is_not_ready(result["error"]), f"{command}: {result['error']}"


def _is_not_ready(error: str) -> bool:
    """Whether to retry: the server takes one test at a time, and reopens its socket after each."""
    return any(each in error for each in ("busy", "reset by peer", "Connection refused"))
