"""Count events by windows of time, to cap how many of a flood are handled."""

from __future__ import annotations

import asyncio


class RateWindow:
    """The number of events in the current window. A window begins with an event."""

    def __init__(self, seconds: float) -> None:
        self.end = 0.0
        """When the window ends, by the event loop's clock."""
        self._seconds = seconds
        self._events = 0

    def count(self) -> int:
        """Count an event; return how many the window has now, this one included."""
        now = asyncio.get_running_loop().time()
        if now >= self.end:
            self._events, self.end = 0, now + self._seconds
        self._events += 1
        return self._events
