"""CPU time and memory of processes, as everyone can read them in /proc (proc(5))."""

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
    """The part that no file backs: heap and stacks."""


def cpu_seconds(pid: int) -> float:
    """Return user and system time of all threads, including ended ones, in steps of a tick."""
    _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / TICKS


def machine_cpu_seconds() -> float:
    """Return the time of all processors, including interrupts, which are charged to no process."""
    _, user, nice, system, _idle, _iowait, irq, softirq, *_ = (
        Path("/proc/stat").read_text().splitlines()[0].split()
    )
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS


def memory(pid: int) -> Memory:
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.M)}
    return Memory(kib["VmRSS"] / 1024, kib["RssAnon"] / 1024)
