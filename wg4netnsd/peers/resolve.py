"""Look up host names in the host's network namespace, where most engines' sockets are."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from wg4netnsd.aio import blocking
from wg4netnsd.config.model import unmapped
from wg4netnsd.errors import Error, LimitExceeded, Timeout, Unresolved

LOOKUP_TIME: Final = 5.0
"""Seconds, including the wait for a slot; the C library's default for its first name server."""

MAX_LOOKUPS: Final = 16
"""Look-ups at once in the whole daemon, hung ones included: a dead resolver must leave some of
blocking's threads to callers that open files."""

_slots = asyncio.Semaphore(MAX_LOOKUPS)

LookupResults = dict[str, list[str] | Error]
"""Each host name's addresses, or the error that its look-up ended with."""


LookUp = Callable[[str], Awaitable[list[str]]]
"""Returns a host's addresses, the best first. Raises Error."""


async def look_up_all(hosts: Iterable[str], look_up: LookUp) -> LookupResults:
    """Look up all of `hosts` at once. Never fails."""

    async def ask(host: str) -> tuple[str, list[str] | Error]:
        try:
            return host, await look_up(host)
        except Error as error:
            return host, error

    return dict(await asyncio.gather(*map(ask, set(hosts))))


async def look_up(host: str) -> list[str]:
    """Return the addresses of `host`, the best first (RFC 6724).

    Raises Unresolved, Timeout, LimitExceeded.
    """
    loop = asyncio.get_running_loop()

    def ask() -> list[str]:
        try:
            return _getaddrinfo(host)
        finally:  # the slot is in use until the thread ends, even if nobody waits any more
            loop.call_soon_threadsafe(_slots.release)

    try:
        async with asyncio.timeout(LOOKUP_TIME):
            await _slots.acquire()
            try:
                return await blocking.call(LOOKUP_TIME, ask)
            except LimitExceeded:  # no thread was started
                _slots.release()
                raise
    except TimeoutError:
        raise Timeout(f"{host}: no answer within {LOOKUP_TIME:g} s") from None
    except OSError as error:
        raise Unresolved(f"{host}: {error.strerror}") from None
    except LimitExceeded as error:
        raise LimitExceeded(f"{host}: {error.text}") from None


def _getaddrinfo(host: str) -> list[str]:
    # AI_ADDRCONFIG: no IPv6 addresses on a host without IPv6.
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(unmapped(str(address[0])) for *_, address in answers))


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address, so that there is nothing to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
