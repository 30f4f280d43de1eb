"""When the machine has been suspended: the kernel's clocks tell, and logind where there is one.

CLOCK_BOOTTIME goes on while the machine is suspended and CLOCK_MONOTONIC does not (time(7),
clock_gettime(2)); their distance is the time spent suspended since boot. The kernel says when to
look: at a resume it cancels the timers that are to end when CLOCK_REALTIME is set
(TFD_TIMER_CANCEL_ON_SET of timerfd_create(2); timekeeping_resume() calls timerfd_resume(),
fs/timerfd.c).

logind adds the suspends in which the kernel's clocks went on, as those of some virtual machines do.
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
"""Seconds: the two clocks are read one after the other, and we may be made to wait in between."""

RECENT: Final = 10.0
"""Seconds in which logind's word for a resume may come after the kernel's: it runs hooks first."""

FAR: Final = sys.maxsize
"""Seconds since 1970, of a timer that is only ever to be cancelled."""

_PREPARE_FOR_SLEEP: Final = (
    "type='signal',sender='org.freedesktop.login1',path='/org/freedesktop/login1',"
    "interface='org.freedesktop.login1.Manager',member='PrepareForSleep'"
)


class Clocks(NamedTuple):
    """A reading of both clocks, in seconds."""

    boottime: float
    monotonic: float

    @property
    def suspended(self) -> float:
        return self.boottime - self.monotonic


def read_clocks() -> Clocks:
    return Clocks(time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC))


class ResumeDetector:
    """Decides which hint is the first of a resume. Pure: the clocks are the caller's to read."""

    def __init__(self, now: Clocks) -> None:
        self._suspended = now.suspended
        self._reported_at = -RECENT  # by CLOCK_BOOTTIME

    def detect(self, now: Clocks, announced: bool = False) -> str:
        """Why a resume is to be told now; empty if none is. `announced`: logind told of one.

        What the clocks tell is always new. Only of a resume that they don't tell of can't it be
        known whether it was told already.
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
    """Calls `resumed`, with the reason, once after each suspend.

    `clock_set` is called when CLOCK_REALTIME may have jumped for another reason. Sleeps as long as
    nothing happens.
    """

    def __init__(
        self,
        resumed: Callable[[str], None],
        clock_set: Callable[[], None] = lambda: None,
        read: Callable[[], Clocks] = read_clocks,
    ) -> None:
        """To be made in a running event loop. Raises OSError."""
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
        """Stop watching; may be called again."""
        if self._timer >= 0:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1
            self._logind.cancel()

    def _on_timer(self) -> None:
        if not read_timer(self._timer):
            return
        # First this, then the clocks: a jump in between is either seen now or wakes us again.
        arm(self._timer, FAR)
        if reason := self._detector.detect(self._read()):
            self._resumed(reason)
        else:
            self._clock_set()

    def _on_prepare_for_sleep(self, body: list[Any]) -> None:
        """True comes before a suspend, False after it (org.freedesktop.login1(5))."""
        if body == [False] and (reason := self._detector.detect(self._read(), announced=True)):
            self._resumed(reason)

    async def _listen_to_logind(self) -> None:
        try:
            address = system_address()
            await client.listen(address, _PREPARE_FOR_SLEEP, self._on_prepare_for_sleep)
        except client.BusGone as error:
            log.info("logind is not heard, only the kernel's clocks: system bus: %s", error)


# ---------------------------------------------------------------- timerfd_create(2)


def create_timer() -> int:
    """One of CLOCK_REALTIME. Raises OSError."""
    return timerfd_create(time.CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC)


def arm(fd: int, seconds: int) -> None:
    """Have the timer end at that time of its clock, or when the clock is set."""
    try:
        timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, seconds)
    except OSError as error:
        # It was cancelled just before; it is armed all the same (timerfd_create(2), NOTES).
        if error.errno != errno.ECANCELED:
            raise


def read_timer(fd: int) -> bool:
    """Whether the timer has ended or was cancelled since the last time."""
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.ECANCELED:
            raise
    return True
