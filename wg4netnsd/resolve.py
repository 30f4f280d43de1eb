"""Endpoints' host names, looked up where the engine's sockets are: in the host's namespace."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

from wg4netnsd import blocking
from wg4netnsd.config import Endpoint, Peer
from wg4netnsd.errors import Error, LimitExceeded, Timeout, Unresolved

LOOKUP_TIME: Final = 5.0
"""Seconds; the C library's default for its first name server."""
LOOKUPS_AT_ONCE: Final = 8  # of one tunnel


async def endpoints(peers: Iterable[Peer]) -> tuple[dict[str, Endpoint], list[Error]]:
    """Each peer's endpoint as an address, by public key, and what went wrong with the others.

    A name that does not resolve is no reason to fail: the far end may speak first, or the network
    come later.
    """
    named = {peer.public_key: peer.endpoint for peer in peers if peer.endpoint}
    hosts = list({endpoint.host for endpoint in named.values()})
    at_once = asyncio.Semaphore(LOOKUPS_AT_ONCE)
    results = await asyncio.gather(*(_address(host, at_once) for host in hosts))
    answers = dict(zip(hosts, results, strict=True))
    found: dict[str, Endpoint] = {}
    for public_key, endpoint in named.items():
        if isinstance(address := answers[endpoint.host], str):
            found[public_key] = Endpoint(address, endpoint.port)
    return found, [answer for answer in results if isinstance(answer, Error)]


async def _address(host: str, at_once: asyncio.Semaphore) -> str | Error:
    if _is_address(host):
        return host
    try:
        async with at_once:
            return await blocking.call(LOOKUP_TIME, _look_up, host)
    except TimeoutError:
        return Timeout(f"{host}: no answer within {LOOKUP_TIME:g} s")
    except OSError as error:
        return Unresolved(f"{host}: {error.strerror}")
    except LimitExceeded as error:
        return error


def _look_up(host: str) -> str:
    # AI_ADDRCONFIG: no IPv6 address on a host without IPv6. The order is RFC 6724's.
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    return str(answers[0][4][0])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
