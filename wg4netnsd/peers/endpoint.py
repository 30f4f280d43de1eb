"""Endpoints with a host name: which address is in use, and when the name is looked up again.

The name is looked up when the tunnel begins. After that it is looked up only while it has no
address, and when a peer that is tried or was reached does not answer. It is not looked up for a
peer that is silent or that answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wg4netnsd.aio.tasks import log_failure
from wg4netnsd.config.model import Endpoint
from wg4netnsd.engine.events import Timers
from wg4netnsd.errors import Error, Unresolved
from wg4netnsd.peers.resolve import LookUp, LookupResults, is_address

log = logging.getLogger(__name__)

TRIES: Final = 2
"""Initiations sent to an address before the next address is tried; a packet may be lost."""
FIRST_DELAY, MAX_DELAY = 1.0, 300.0
"""Seconds between two look-ups of a name; the delay doubles each time until the peer answers."""


def first_endpoint(endpoint: Endpoint, found: LookupResults) -> str:
    """Return the first ADDRESS:PORT to try, or "" if the host has no known address."""
    addresses = _addresses(endpoint.host, found)
    return "" if isinstance(addresses, Error) else str(endpoint._replace(host=addresses[0]))


def host_of(endpoint: str) -> str:
    """Return the bare address of an engine's ADDRESS:PORT."""
    return endpoint.rpartition(":")[0].strip("[]")


def _addresses(host: str, found: LookupResults) -> list[str] | Error:
    if is_address(host):
        return [host]
    return found.get(host) or Unresolved(f"{host}: not looked up yet")


class NamedEndpoint:
    """One peer's endpoint with a host name, and the addresses that the name has led to."""

    def __init__(
        self,
        name: Endpoint,
        found: LookupResults,
        use: Callable[[str, bool], None],
        failed: Callable[[Error], None],
        look_up: LookUp,
    ) -> None:
        """Begin with first_endpoint().

        `use(endpoint, initiate)` is called when packets should go to another ADDRESS:PORT, with
        `initiate` if a handshake should begin at once. `failed` is called with each new error of
        `look_up`.
        """
        self.error: Error | None = None  # the last look-up's, until the peer answers
        self.timers = Timers()
        self._name = name
        self._use = use
        self._failed = failed
        self._look_up_host = look_up
        self._addresses: list[str] = []  # the first one is in use
        self._unanswered = 0  # initiations
        self._delay = FIRST_DELAY
        self._looked_up_at: float | None = asyncio.get_running_loop().time()
        self._look_up: asyncio.Task[None] | None = None
        self._next_try: asyncio.TimerHandle | None = None
        addresses = _addresses(name.host, found)
        if isinstance(addresses, Error):
            self._set_error(addresses)
            self.look_up_again()
        else:
            self._addresses = addresses

    # ------------------------------------------------------------ handshakes

    def initiated(self) -> None:
        """Count an initiation, and try the next address after TRIES of them."""
        self._unanswered += 1
        if self._unanswered % TRIES == 0:
            # This initiation may yet be answered, so wait; but not until the next one is sent,
            # after REKEY_TIMEOUT.
            self._cancel_next_try()
            delay = self.timers.rekey_attempt / 36
            self._next_try = asyncio.get_running_loop().call_later(delay, self._try_next_address)

    def answered(self) -> None:
        """Stop looking for the peer: a handshake is complete, so it is where it answered from."""
        self.error = None
        self._unanswered = 0
        self._delay = FIRST_DELAY
        self.close()

    def moved(self, address: str) -> None:
        """Put the address first that the peer now sends from."""
        if address in self._addresses:
            self._put_first(address)

    # ------------------------------------------------------------ look-ups

    def look_up_again(self, now: bool = False) -> None:
        """Look the name up as soon as the delay allows; at once with `now`, for a new network."""
        if now:
            self._delay = FIRST_DELAY
            self._looked_up_at = None
            self._cancel_look_up()
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.create_task(self._look_up_until_found())
            self._look_up.add_done_callback(log_failure)

    def close(self) -> None:
        """Cancel the timer and the look-up; a later call or event may start them again."""
        self._cancel_next_try()
        self._cancel_look_up()

    async def _look_up_until_found(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._looked_up_at is not None:
                await asyncio.sleep(self._looked_up_at + self._delay - loop.time())
                self._delay = min(self._delay * 2, MAX_DELAY)
            try:
                found = await self._look_up_host(self._name.host)
            except Error as error:
                self._set_error(error)
                if self._addresses:  # they may do; the next failure looks the name up again
                    return
            else:
                self._use_addresses(found)
                return
            finally:
                self._looked_up_at = loop.time()

    def _use_addresses(self, found: list[str]) -> None:
        self.error = None
        had_none = not self._addresses
        in_use = self._addresses[:1]
        self._addresses = found
        if in_use and in_use[0] in found:
            self._put_first(in_use[0])
        self._use(self._endpoint(), had_none or self._unanswered > 0)

    def _set_error(self, error: Error) -> None:
        log.debug("%s", error)
        if str(error) != str(self.error):  # else it was reported already
            self._failed(error)
        self.error = error

    # ------------------------------------------------------------ one address after the other

    def _try_next_address(self) -> None:
        self._next_try = None
        if len(self._addresses) > 1:
            self._put_first(self._addresses[1])
            self._use(self._endpoint(), False)
        if self._unanswered >= TRIES * len(self._addresses):  # every address has been tried
            self.look_up_again()

    def _put_first(self, address: str) -> None:
        at = self._addresses.index(address)
        self._addresses = self._addresses[at:] + self._addresses[:at]

    def _endpoint(self) -> str:
        return str(self._name._replace(host=self._addresses[0]))

    def _cancel_next_try(self) -> None:
        if self._next_try:
            self._next_try.cancel()
            self._next_try = None

    def _cancel_look_up(self) -> None:
        if self._look_up:
            self._look_up.cancel()
            self._look_up = None
