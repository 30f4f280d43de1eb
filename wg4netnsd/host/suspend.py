"""Notice when the machine was suspended, by the kernel's clocks and by logind if there is one.

While the machine is suspended, CLOCK_BOOTTIME goes on and CLOCK_MONOTONIC does not (time(7),
clock_gettime(2)); their difference is the time spent suspended since boot. The kernel says when to
compare them: a resume cancels timers with TFD_TIMER_CANCEL_ON_SET, as if CLOCK_REALTIME were set
(timerfd_create(2); timekeeping_resume() calls timerfd_resume(), fs/timerfd.c).

logind adds the suspends that the kernel's clocks do not show, as in some virtual machines.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from wg4netnsd.bus import client
from wg4netnsd.bus.address import system_address
from wg4netnsd.bus.connection import BusGone
from wg4netnsd.kernel.syscalls import (
    TFD_CLOEXEC,
    TFD_NONBLOCK,
    TFD_TIMER_ABSTIME,
    TFD_TIMER_CANCEL_ON_SET,
    timerfd_create,
    timerfd_settime,
)

log = logging.getLogger(__name__)

TOLERANCE: Final = 1.0
"""Seconds; the process may be preempted between its readings of the two clocks."""

RECENT: Final = 10.0
"""Seconds by which logind's signal may follow the kernel's: logind runs its hooks first."""

FAR: Final = sys.maxsize
"""Seconds since 1970, for a timer that never expires but can be cancelled."""

_PREPARE_FOR_SLEEP: Final = (
    "type='signal',sender='org.freedesktop.login1',path='/org/freedesktop/login1',"
    "interface='org.freedesktop.login1.Manager',member='PrepareForSleep'"
)


class Clocks(NamedTuple):
    """One reading of both clocks, in seconds."""

    boottime: float
    monotonic: float

    @property
    def suspended(self) -> float:
        return self.boottime - self.monotonic


def read_clocks() -> Clocks:
    return Clocks(time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC))


class ResumeDetector:
    """A filter that decides which hints mean a new resume. Pure: the caller reads the clocks."""

    def __init__(self, now: Clocks) -> None:
        self._suspended = now.suspended
        self._reported_at = -RECENT  # by CLOCK_BOOTTIME

    def detect(self, now: Clocks, announced: bool = False) -> str:
        """Return the reason to report a resume now, or "" if there is none.

        `announced`: the hint is logind's. A suspend that the clocks show is always new. One that
        only logind reports may have been reported already, so it must not be RECENT.
        """
        slept, self._suspended = now.suspended - self._suspended, now.suspended
        if slept > TOLERANCE:
            reason = f"the machine was suspended for {slept:.0f} s"
        elif announced and now.boottime - self._reported_at > RECENT:
            reason = "the machine has resumed"
        else:
            return ""
        self._reported_at = now.boottime
        return reason


class SuspendWatch:
    """A watch that calls `resumed`, with the reason, once after each suspend.

    It calls `clock_set` when CLOCK_REALTIME may have jumped for another reason. It never polls.
    """

    def __init__(
        self,
        resumed: Callable[[str], None],
        clock_set: Callable[[], None] = lambda: None,
        read: Callable[[], Clocks] = read_clocks,
    ) -> None:
        """Start watching, in the running event loop. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._resumed = resumed
        self._clock_set = clock_set
        self._read = read
        self._timer = create_timer()
        arm(self._timer, FAR)
        self._detector = ResumeDetector(read())
        loop.add_reader(self._timer, self._on_timer)
        self._logind = loop.create_task(self._listen_to_logind())

    def close(self) -> None:
        """Stop watching. Repeats are no-ops."""
        if self._timer >= 0:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1
            self._logind.cancel()

    def _on_timer(self) -> None:
        if not read_timer(self._timer):
            return
        # Armed before the clocks are read: a jump in between is seen now or wakes us again.
        arm(self._timer, FAR)
        if reason := self._detector.detect(self._read()):
            self._resumed(reason)
        else:
            self._clock_set()

    def _on_prepare_for_sleep(self, body: list[Any]) -> None:
        """Handle PrepareForSleep: true before a suspend, false after (org.freedesktop.login1)."""
        if body == [False] and (reason := self._detector.detect(self._read(), announced=True)):
            self._resumed(reason)

    async def _listen_to_logind(self) -> None:
        try:
            address = system_address()
            await client.listen(address, _PREPARE_FOR_SLEEP, self._on_prepare_for_sleep)
        except BusGone as error:
            log.info("logind is not watched, only the kernel's clocks: system bus: %s", error)


# ---------------------------------------------------------------- timerfd_create(2)


def create_timer() -> int:
    """Create a timerfd on CLOCK_REALTIME. Raises OSError."""
    return timerfd_create(time.CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC)


def arm(fd: int, seconds: int) -> None:
    """Set the timer to expire at `seconds` of its clock, or when the clock is set."""
    try:
        timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, seconds)
    except OSError as error:
        # The clock was set just before; the timer is armed all the same (timerfd_create(2), NOTES).
        if error.errno != errno.ECANCELED:
            raise


def read_timer(fd: int) -> bool:
    """Return whether the timer has expired or was cancelled since the last call."""
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.ECANCELED:
            raise
    return True
