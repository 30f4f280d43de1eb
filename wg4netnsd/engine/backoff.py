"""Delays before a crashed engine is restarted, and when to give up. Pure: it reads no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HEALTHY_TIME: Final = 10.0
"""Seconds after which an engine's end no longer counts as part of a crash loop."""
MAX_CRASHES: Final = 8
FIRST_DELAY, MAX_DELAY = 0.1, 5.0  # seconds


@dataclass
class Backoff:
    crashes: int = 0

    def crash_delay(self, uptime: float) -> float | None:
        """Return the seconds to wait after an engine that ran for `uptime` seconds; None: give up.

        The first restart is immediate, the second waits FIRST_DELAY, and each further one waits
        twice as long as the one before.
        """
        self.crashes = 1 if uptime >= HEALTHY_TIME else self.crashes + 1
        if self.crashes > MAX_CRASHES:
            return None
        if self.crashes == 1:
            return 0.0
        return min(FIRST_DELAY * 2.0 ** (self.crashes - 2), MAX_DELAY)

    def shortage_delay(self) -> float:
        """Return the seconds to wait if a process or an fd was lacking, not the engine's fault."""
        return FIRST_DELAY

    def reset(self) -> None:
        self.crashes = 0
