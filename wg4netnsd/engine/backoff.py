"""When a crashing engine is restarted, and when given up. Pure: the clock is the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HEALTHY_TIME: Final = 10.0
"""Seconds that an engine has to run for its end not to count as one of a crash loop."""
MAX_CRASHES: Final = 8
FIRST_DELAY, MAX_DELAY = 0.1, 5.0  # seconds


@dataclass
class Backoff:
    crashes: int = 0

    def delay_after_crash(self, uptime: float) -> float | None:
        """Seconds to wait before the next start after an engine ran `uptime` seconds.

        The first restart is immediate, each further one waits twice as long; None means give up.
        """
        self.crashes = 1 if uptime >= HEALTHY_TIME else self.crashes + 1
        if self.crashes > MAX_CRASHES:
            return None
        if self.crashes == 1:
            return 0.0
        return min(FIRST_DELAY * 2.0 ** (self.crashes - 2), MAX_DELAY)

    def delay_when_lacking(self) -> float:
        """Seconds to wait where a process or an fd is lacking, which is no fault of the engine."""
        return FIRST_DELAY

    def reset(self) -> None:
        self.crashes = 0
