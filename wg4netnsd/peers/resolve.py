"""Host names, looked up where the engine's sockets are: in the host's namespace."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

from wg4netnsd.aio import blocking
from wg4netnsd.errors import Error, LimitExceeded, Timeout, Unresolved

LOOKUP_TIME: Final = 5.0
"""Seconds, waiting for one's turn included; the C library's default for its first name server."""

LOOKUPS_AT_ONCE: Final = 16
"""Of the whole daemon, hung ones among them: a dead resolver must not take blocking's threads from
those who open files."""

_turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)

Found = dict[str, list[str] | Error]
"""Host names, each with its addresses or with why there are none."""


async def look_up_all(hosts: Iterable[str]) -> Found:
    """All of them, within LOOKUP_TIME."""

    async def ask(host: str) -> tuple[str, list[str] | Error]:
        try:
            return host, await look_up(host)
        except Error as error:
            return host, error

    return dict(await asyncio.gather(*map(ask, set(hosts))))


async def look_up(host: str) -> list[str]:
    """Its addresses, the best first (RFC 6724). Raises Unresolved, Timeout, LimitExceeded."""
    loop = asyncio.get_running_loop()

    def ask() -> list[str]:
        try:
            return _getaddrinfo(host)
        finally:  # not before the thread ends, whoever still waits for it
            loop.call_soon_threadsafe(_turns.release)

    try:
        async with asyncio.timeout(LOOKUP_TIME):
            await _turns.acquire()
            try:
                return await blocking.call(LOOKUP_TIME, ask)
            except LimitExceeded:  # so nobody has begun to
                _turns.release()
                raise
    except TimeoutError:
        raise Timeout(f"{host}: no answer within {LOOKUP_TIME:g} s") from None
    except OSError as error:
        raise Unresolved(f"{host}: {error.strerror}") from None
    except LimitExceeded as error:
        raise LimitExceeded(f"{host}: {error.text}") from None


def _getaddrinfo(host: str) -> list[str]:
    # AI_ADDRCONFIG: no IPv6 address on a host without IPv6.
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


def is_address(host: str) -> bool:
    """Is it an IP address already?"""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
