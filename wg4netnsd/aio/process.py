"""A process, spawned by this daemon or an earlier one; watched and killed through its pidfd."""

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

SAMPLES: Final = 5
SAMPLE_TIME: Final = 0.05  # seconds

_CPUCLOCK_SCHED: Final = 2  # linux/posix-timers.h


class Vitals(NamedTuple):
    """The kernel's view of a process, read without waking it."""

    cpu_ns: int  # used since it began
    memory: int  # resident bytes that it does not share
    stopped: bool  # by a signal or a tracer


class Process:
    """A process. Owns its pidfd. Only the daemon that spawned it can read its exit status."""

    def __init__(self, pidfd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        """Take ownership of `pidfd`, also if the process has ended. `child`: if we spawned it."""
        self.pidfd = pidfd
        self.pid = child.pid if child else pid_of(pidfd)  # -1: it has ended and was reaped
        self.exited = asyncio.Event()
        self._child = child
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    def describe_exit(self) -> str:
        """Say how the process ended, for error texts."""
        if not self.exited.is_set():
            return "still runs, but its connection is broken"
        match self._child.returncode if self._child else None:
            case None:
                return "ended"
            case status if status < 0:
                return f"ended by signal {signal.Signals(-status).name}"
            case status:
                return f"ended with status {status}"

    def vitals(self) -> Vitals | None:
        """Return the process's vitals; None if it has ended or is ending."""
        try:
            # As clock_getcpuclockid(3), which Python lacks: bits 3 and up are ~pid.
            cpu_ns = time.clock_gettime_ns((~self.pid << 3) | _CPUCLOCK_SCHED)
            _, resident, shared, *_ = Path(f"/proc/{self.pid}/statm").read_text().split()
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return None
        memory = (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")
        return Vitals(cpu_ns, memory, state in "Tt")

    async def vitals_at_rest(self) -> Vitals | None:
        """Return the vitals once the process has used no CPU for SAMPLE_TIME, or after some tries.

        On a busy machine it still has some work to do when its answer is here already. Without this
        it would seem to have worked since, and be queried at every check. (The kernel reports no
        process that comes to rest, hence the samples.)
        """
        vitals = self.vitals()
        for _ in range(SAMPLES):
            before = vitals
            await asyncio.sleep(SAMPLE_TIME)
            vitals = self.vitals()
            if vitals is None or before is None or vitals.cpu_ns == before.cpu_ns:
                break
        return vitals

    async def kill(self, seconds: float) -> None:
        """Send SIGKILL, and return when the process is gone.

        Raises TimeoutError if it is not gone after `seconds`: the kernel can hold it.
        """
        if not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            async with asyncio.timeout(seconds):
                await self.exited.wait()

    def _on_exit(self) -> None:
        self.close()
        if self._child:
            self._child.wait()  # returns at once: the child is a zombie by now
        self.exited.set()

    def close(self) -> None:
        """Stop watching the process, and close its pidfd."""
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)


def pid_of(pidfd: int) -> int:
    """Return a pidfd's PID, or -1 if the process was reaped; see proc_pid_fdinfo(5)."""
    found = re.search(r"^Pid:\s*(-?\d+)$", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.M)
    return int(found[1]) if found else -1
