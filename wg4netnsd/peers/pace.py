"""How fast changes are told. Pure: the clock is the caller's.

A token bucket: so many in a row at once, then one at a time. What can't be told yet is merged into
what is told next, so the last change is never lost.
"""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

BURST: Final = 10
INTERVAL: Final = 1.0  # seconds for one more

T = TypeVar("T")


class Report(NamedTuple, Generic[T]):
    """One change, or several merged into one."""

    new: T
    old: T
    missed: int  # changes in between


class Pace(Generic[T]):
    """The changes of one value. Times are in seconds of any clock that never goes back."""

    def __init__(self, value: T) -> None:
        self.newest = value
        self._told = value
        self._untold = 0
        self._tokens = float(BURST)
        self._counted_at: float | None = None

    def change(self, value: T) -> None:
        """Note a change, which due() will tell."""
        if value != self.newest:
            self.newest = value
            self._untold += 1

    def due(self, now: float) -> Report[T] | None:
        """What is to be told now; it then counts as told. None if nothing is, or not yet."""
        if self.newest == self._told:
            return None
        self._refill(now)
        if self._tokens < 1:
            return None
        self._tokens -= 1
        report = Report(self.newest, self._told, self._untold - 1)
        self._told, self._untold = self.newest, 0
        return report

    def due_at(self, now: float) -> float | None:
        """When due() will have something; None if there is nothing to tell."""
        if self.newest == self._told:
            return None
        self._refill(now)
        return now + max(0.0, 1 - self._tokens) * INTERVAL

    def _refill(self, now: float) -> None:
        if self._counted_at is not None:
            earned = max(0.0, now - self._counted_at) / INTERVAL
            self._tokens = min(float(BURST), self._tokens + earned)
        self._counted_at = max(now, self._counted_at or now)
