"""A process: spawned by us or by a daemon before us, watched and killed by its pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple

_CPUCLOCK_SCHED: Final = 2  # linux/posix-timers.h


class Vitals(NamedTuple):
    """What the kernel tells of a process without its doing anything."""

    cpu_ns: int  # all that it has used
    memory: int  # bytes that are its own and resident
    stopped: bool  # by a signal or a tracer


class Process:
    """Owns its pidfd. A successor of the daemon is not its parent, so it is not told its status."""

    def __init__(self, pidfd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        """Owns `pidfd`, also of a process that has ended already."""
        self.pidfd = pidfd
        self.pid = child.pid if child else pid_of(pidfd)  # -1: it has ended, and been waited for
        self.exited = asyncio.Event()
        self._child = child
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    def describe_exit(self) -> str:
        """How it ended, for people."""
        if not self.exited.is_set():
            return "no longer talks to us"
        match self._child.returncode if self._child else None:
            case None:
                return "ended"
            case status if status < 0:
                return f"ended by signal {signal.Signals(-status).name}"
            case status:
                return f"ended with status {status}"

    def vitals(self) -> Vitals | None:
        """None if it has ended, or is about to."""
        try:
            # clock_getcpuclockid(3), which Python does not have: bits 3 and up are ~pid.
            cpu_ns = time.clock_gettime_ns((~self.pid << 3) | _CPUCLOCK_SCHED)
            _, resident, shared, *_ = Path(f"/proc/{self.pid}/statm").read_text().split()
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return None
        memory = (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")
        return Vitals(cpu_ns, memory, state in "Tt")

    async def kill(self, seconds: float) -> None:
        """SIGKILL it and return when it is gone. Raises TimeoutError if the kernel holds it."""
        if not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            async with asyncio.timeout(seconds):
                await self.exited.wait()

    def _on_exit(self) -> None:
        self.close()
        if self._child:
            self._child.wait()  # a zombie by now, so this returns at once
        self.exited.set()

    def close(self) -> None:
        """Watch it no longer."""
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)


def pid_of(pidfd: int) -> int:
    """-1 where it has ended; proc_pid_fdinfo(5)."""
    found = re.search(r"^Pid:\s*(-?\d+)$", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.M)
    return int(found[1]) if found else -1
