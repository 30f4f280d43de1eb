"""Endpoints with a host name: which of its addresses is tried, and when it is looked up again.

It is looked up when the tunnel begins, and then only as long as it is needed: while it has no
address, and when a peer that was or could not be reached is tried or given up. Nothing is looked up
for a peer that is silent, or that answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wg4netnsd.aio.tasks import log_defect
from wg4netnsd.config.model import Endpoint
from wg4netnsd.engine.events import Timers
from wg4netnsd.errors import Error, Unresolved
from wg4netnsd.peers.resolve import Found, is_address, look_up

log = logging.getLogger(__name__)

TRIES: Final = 2
"""Initiations that an address gets before the next one's turn; a packet may be lost."""
FIRST_DELAY, MAX_DELAY = 1.0, 300.0
"""Seconds from one look-up of a name to the next; twice as long each time, until a peer answers."""


def first_address(endpoint: Endpoint, found: Found) -> str:
    """Where to begin, as address and port; empty if the host has no address that is known."""
    addresses = _addresses(endpoint.host, found)
    return "" if isinstance(addresses, Error) else str(endpoint._replace(host=addresses[0]))


def host_of(endpoint: str) -> str:
    """The bare address of an ADDRESS:PORT, as an engine has it."""
    return endpoint.rpartition(":")[0].strip("[]")


def _addresses(host: str, found: Found) -> list[str] | Error:
    if is_address(host):
        return [host]
    return found.get(host) or Unresolved(f"{host}: not looked up yet")


class NamedEndpoint:
    """One peer's. Calls `use(endpoint, initiate)` when its packets should go elsewhere."""

    def __init__(
        self,
        name: Endpoint,
        found: Found,
        use: Callable[[str, bool], None],
        failed: Callable[[Error], None],
    ) -> None:
        """Begins with first_address(). `use`'s `initiate`: a handshake is to begin at once.

        `failed` gets look-ups' errors.
        """
        self.error: Error | None = None  # the last look-up's, until the peer answers
        self.timers = Timers()
        self._name = name
        self._use = use
        self._failed = failed
        self._addresses: list[str] = []  # the one in use is the first
        self._unanswered = 0
        self._delay = FIRST_DELAY
        self._looked_up_at: float | None = asyncio.get_running_loop().time()
        self._look_up: asyncio.Task[None] | None = None
        self._next_turn: asyncio.TimerHandle | None = None
        addresses = _addresses(name.host, found)
        if isinstance(addresses, Error):
            self._note(addresses)
            self.look_up_again()
        else:
            self._addresses = addresses

    # ------------------------------------------------------------ what becomes of handshakes

    def initiated(self) -> None:
        """An initiation was sent."""
        self._unanswered += 1
        if self._unanswered % TRIES == 0:
            # Not at once: this one may yet be answered. Before the next, after REKEY_TIMEOUT.
            self._cancel_turn()
            delay = self.timers.rekey_attempt / 36
            self._next_turn = asyncio.get_running_loop().call_later(delay, self._take_turn)

    def answered(self) -> None:
        """A handshake is complete: wherever the peer is, that is where to look for it."""
        self.error = None
        self._unanswered = 0
        self._delay = FIRST_DELAY
        self.close()

    def moved(self, address: str) -> None:
        """The peer speaks from `address` now."""
        if address in self._addresses:
            self._put_first(address)

    # ------------------------------------------------------------ look-ups

    def look_up_again(self, now: bool = False) -> None:
        """Have it looked up as soon as the delay allows; or `now`, when the network is another."""
        if now:
            self._delay = FIRST_DELAY
            self._looked_up_at = None
            self._cancel_look_up()
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.create_task(self._look_up_until_found())
            self._look_up.add_done_callback(log_defect)

    def close(self) -> None:
        """Do nothing more unasked."""
        self._cancel_turn()
        self._cancel_look_up()

    async def _look_up_until_found(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._looked_up_at is not None:
                await asyncio.sleep(self._looked_up_at + self._delay - loop.time())
                self._delay = min(self._delay * 2, MAX_DELAY)
            try:
                found = await look_up(self._name.host)
            except Error as error:
                self._note(error)
                if self._addresses:  # the old ones may do; the next failure asks anew
                    return
            else:
                self._take(found)
                return
            finally:
                self._looked_up_at = loop.time()

    def _take(self, found: list[str]) -> None:
        self.error = None
        was_nowhere = not self._addresses
        in_use = self._addresses[:1]
        self._addresses = found
        if in_use and in_use[0] in found:
            self._put_first(in_use[0])
        self._use(self._endpoint(), was_nowhere or self._unanswered > 0)

    def _note(self, error: Error) -> None:
        log.debug("%s", error)
        if str(error) != str(self.error):  # else it has been told
            self._failed(error)
        self.error = error

    # ------------------------------------------------------------ turns

    def _take_turn(self) -> None:
        self._next_turn = None
        if len(self._addresses) > 1:
            self._put_first(self._addresses[1])
            self._use(self._endpoint(), False)
        if self._unanswered >= TRIES * len(self._addresses):  # each has had its turn
            self.look_up_again()

    def _put_first(self, address: str) -> None:
        at = self._addresses.index(address)
        self._addresses = self._addresses[at:] + self._addresses[:at]

    def _endpoint(self) -> str:
        return str(self._name._replace(host=self._addresses[0]))

    def _cancel_turn(self) -> None:
        if self._next_turn:
            self._next_turn.cancel()
            self._next_turn = None

    def _cancel_look_up(self) -> None:
        if self._look_up:
            self._look_up.cancel()
            self._look_up = None
