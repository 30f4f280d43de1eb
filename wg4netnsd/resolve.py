"""Endpoints' host names, looked up where the engine's sockets are: in the host's namespace."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

from wg4netnsd import blocking
from wg4netnsd.config import Endpoint, Peer
from wg4netnsd.errors import Error, Timeout, Unresolved

LOOKUP_TIME: Final = 5.0
"""Seconds; the C library's default for its first name server."""


async def endpoints(peers: Iterable[Peer]) -> tuple[dict[str, Endpoint], list[Error]]:
    """Each peer's endpoint as an address, by public key, and what went wrong with the others.

    A name that does not resolve is no reason to fail: the far end may speak first, or the network
    come later.
    """
    named = [(peer.public_key, peer.endpoint) for peer in peers if peer.endpoint]
    results = await asyncio.gather(
        *(_resolve(endpoint) for _, endpoint in named), return_exceptions=True
    )
    found: dict[str, Endpoint] = {}
    failures: list[Error] = []
    for (public_key, _), result in zip(named, results, strict=True):
        if isinstance(result, Endpoint):
            found[public_key] = result
        elif isinstance(result, Error):
            failures.append(result)
        else:
            raise result
    return found, failures


async def _resolve(endpoint: Endpoint) -> Endpoint:
    if _is_address(endpoint.host):
        return endpoint
    try:
        answers = await blocking.call(LOOKUP_TIME, _look_up, endpoint)
    except TimeoutError:
        raise Timeout(f"{endpoint.host}: no answer within {LOOKUP_TIME:g} s") from None
    except OSError as error:
        raise Unresolved(f"{endpoint.host}: {error.strerror}") from None
    return Endpoint(answers[0], endpoint.port)


def _look_up(endpoint: Endpoint) -> list[str]:
    # AI_ADDRCONFIG: no IPv6 address on a host without IPv6. The order is RFC 6724's.
    answers = socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(address[0]) for *_, address in answers]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
