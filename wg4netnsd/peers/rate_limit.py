"""Limit how often a change is reported. Pure: the caller reads the clock.

A token bucket: BURST changes may be reported at once, then one an INTERVAL. Changes that can't be
reported yet are merged into the next report, so the last change is never lost.
"""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

BURST: Final = 10
INTERVAL: Final = 1.0  # seconds until the bucket has one more token

T = TypeVar("T")


class Report(NamedTuple, Generic[T]):
    """One change, or several merged into one."""

    new: T
    old: T
    missed: int  # changes in between


class RateLimiter(Generic[T]):
    """A limiter for the reports of one value's changes.

    Times are in seconds, of any clock that never goes back.
    """

    def __init__(self, value: T) -> None:
        self.newest = value
        self._reported = value
        self._unreported = 0  # changes
        self._tokens = float(BURST)
        self._refilled_at: float | None = None

    def set(self, value: T) -> None:
        """Set the newest value; if it is another one, due() will report the change."""
        if value != self.newest:
            self.newest = value
            self._unreported += 1

    def due(self, now: float) -> Report[T] | None:
        """Return what to report now, and count it as reported.

        None if there is nothing to report, or not yet.
        """
        if self.newest == self._reported:
            return None
        self._refill(now)
        if self._tokens < 1:
            return None
        self._tokens -= 1
        report = Report(self.newest, self._reported, self._unreported - 1)
        self._reported, self._unreported = self.newest, 0
        return report

    def due_at(self, now: float) -> float | None:
        """Return when due() will have a report; None if there is nothing to report."""
        if self.newest == self._reported:
            return None
        self._refill(now)
        return now + max(0.0, 1 - self._tokens) * INTERVAL

    def _refill(self, now: float) -> None:
        if self._refilled_at is not None:
            earned = max(0.0, now - self._refilled_at) / INTERVAL
            self._tokens = min(float(BURST), self._tokens + earned)
        self._refilled_at = max(now, self._refilled_at or now)
