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


async def resolve(peers: Iterable[Peer]) -> tuple[dict[str, Endpoint], list[Error]]:
    """Each peer's endpoint as an address, by public key, and what went wrong with the others.

    A name that does not resolve is no reason to fail: the far end may speak first, or the network
    come later.
    """
    endpoints = {peer.public_key: peer.endpoint for peer in peers if peer.endpoint}
    hosts = {endpoint.host for endpoint in endpoints.values()}
    addresses = {host: host for host in hosts if _is_address(host)}
    failures: list[Error] = []
    if names := list(hosts - addresses.keys()):
        at_once = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        answers = await asyncio.gather(*(_ask(name, at_once) for name in names))
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, Error):
                failures.append(answer)
            else:
                addresses[name] = answer
    found = {
        public_key: Endpoint(addresses[endpoint.host], endpoint.port)
        for public_key, endpoint in endpoints.items()
        if endpoint.host in addresses
    }
    return found, failures


async def _ask(host: str, at_once: asyncio.Semaphore) -> str | Error:
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
