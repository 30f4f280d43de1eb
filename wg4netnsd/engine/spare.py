"""An engine that is started before a tunnel needs it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from wg4netnsd.engine import events
from wg4netnsd.engine.engine import Engine
from wg4netnsd.errors import EngineFailed, LimitExceeded

log = logging.getLogger(__name__)

REFILL_DELAY: Final = 0.05
"""Seconds before a spare that was taken is replaced: the create that took it finishes first."""
RETRY_DELAY: Final = 2.0  # seconds


class SpareEngine:
    """One engine in reserve: starting a process takes longer than the rest of a create."""

    def __init__(self, binary: Path) -> None:
        self.lacks: dict[str, events.Lack] = {}
        """The parts of the sandbox that engines can't have on this machine, by name."""
        self._binary = binary
        self._spare: Engine | None = None
        self._closed = False
        self.refill()

    def take_engine(self) -> Engine:
        """Return an engine without a TUN, now owned by the caller.

        Raises EngineFailed, LimitExceeded.
        """
        engine, self._spare = self._spare, None
        asyncio.get_running_loop().call_later(REFILL_DELAY, self.refill)
        return engine if engine and not engine.exited.is_set() else self._spawn()

    def refill(self) -> None:
        if self._closed or (self._spare and not self._spare.exited.is_set()):
            return
        try:
            self._spare = self._spawn()
        except EngineFailed as error:
            log.error("%s", error)
        except LimitExceeded as error:  # it will pass, but no event tells when
            log.error("%s", error)
            asyncio.get_running_loop().call_later(RETRY_DELAY, self.refill)

    def _spawn(self) -> Engine:
        engine = Engine.spawn(self._binary)
        engine.on_lack = self._note_lack
        return engine

    def _note_lack(self, lack: events.Lack) -> None:
        if lack.part not in self.lacks:  # else it was logged already
            log.warning("engines run without %s", lack)
        self.lacks[lack.part] = lack

    async def close(self) -> None:
        """Stop the spare engine, and start no other."""
        self._closed = True
        if self._spare:
            await self._spare.stop()
