"""What processes use, as /proc tells everybody (proc(5)): CPU time and memory."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """In MiB."""

    rss: float
    anonymous: float
    """The part of it that no file is behind: heap and stacks."""


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads, those that have ended too; in steps of a tick."""
    _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / TICKS


def machine_cpu_seconds() -> float:
    """All processors' together, with interrupts', which no process is charged for."""
    _, user, nice, system, _idle, _iowait, irq, softirq, *_ = (
        Path("/proc/stat").read_text().splitlines()[0].split()
    )
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS


def memory(pid: int) -> Memory:
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.M)}
    return Memory(kib["VmRSS"] / 1024, kib["RssAnon"] / 1024)
