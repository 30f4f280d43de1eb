"""Connect to a target, in the tunnel or on the host, and say in one word why it failed."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import functools
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from wg4netnsd import errors
from wg4netnsd.aio import blocking
from wg4netnsd.gateway.target import Target, family_of, show_address

ATTEMPT_DELAY: Final = 0.25
"""Seconds until the next address is tried beside one that does not answer (RFC 8305, 5)."""

MAX_ADDRESSES: Final = 8
"""Addresses of a name that are tried."""


class Why(enum.Enum):
    """Why there is no connection, in the words that the clients' protocols have."""

    REFUSED = enum.auto()
    NETWORK_UNREACHABLE = enum.auto()
    HOST_UNREACHABLE = enum.auto()
    UNRESOLVED = enum.auto()
    TIMEOUT = enum.auto()
    SHORTAGE = enum.auto()
    """Of fds or memory here."""
    OTHER = enum.auto()


class DialError(Exception):
    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


_OF_ERRNO: Final = {
    errno.ECONNREFUSED: Why.REFUSED,
    errno.ENOENT: Why.REFUSED,  # of a Unix socket
    errno.ENETUNREACH: Why.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Why.NETWORK_UNREACHABLE,  # the tunnel has no address of this family
    errno.EAFNOSUPPORT: Why.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Why.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Why.TIMEOUT,
} | dict.fromkeys(errors.SHORTAGE, Why.SHORTAGE)


def _error(error: OSError, where: str) -> DialError:
    why = _OF_ERRNO.get(error.errno or 0, Why.OTHER)
    # asyncio has a text of its own for a failed connect.
    return DialError(why, f"{where}: {os.strerror(error.errno) if error.errno else error}")


class Network(Protocol):
    """Where sockets are made and names looked up: the tunnel, or the host."""

    async def open(self, family: int, kind: int) -> socket.socket:
        """Return a non-blocking socket. Raises OSError, errors.Error."""
        ...

    async def resolve(self, name: str, family: int) -> list[str]:
        """Return the addresses of a name, the ones to try first first. Raises errors.Error."""
        ...


class Host:
    """The network that we are in."""

    async def open(self, family: int, kind: int) -> socket.socket:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK)

    async def resolve(self, name: str, family: int) -> list[str]:
        # Its caller bounds the time. A thread of its own, as getaddrinfo() can't be ended.
        try:
            found = await blocking.call(
                3600, socket.getaddrinfo, name, None, family, socket.SOCK_STREAM
            )
        except socket.gaierror as error:
            raise errors.Unresolved(f"{name}: {error.strerror}") from None
        return [str(address[0]) for *_, address in found]


async def addresses_of(network: Network, host: str, family: int = 0) -> list[str]:
    """Return a host's addresses. Raises DialError."""
    if family_of(host) is not None:
        return [host]
    try:
        found = await network.resolve(host, family)
    except errors.Timeout as error:
        raise DialError(Why.TIMEOUT, error.text) from None
    except errors.LimitExceeded as error:
        raise DialError(Why.SHORTAGE, error.text) from None
    except errors.Error as error:
        raise DialError(Why.UNRESOLVED, error.text) from None
    if not found:
        raise DialError(Why.UNRESOLVED, f"{host}: no address")
    return found[:MAX_ADDRESSES]


async def connect(network: Network, target: Target, seconds: float) -> socket.socket:
    """Connect by TCP, or to a Unix socket. Raises DialError."""
    try:
        async with asyncio.timeout(seconds):
            if target.path:
                return await _connect_unix(target)
            addresses = await addresses_of(network, target.host)
            if len(addresses) == 1:
                return await _connect(network, addresses[0], target.port)
            return await _first(
                [functools.partial(_connect, network, each, target.port) for each in addresses]
            )
    except TimeoutError:
        raise DialError(Why.TIMEOUT, f"{target}: no answer in {seconds:g} s") from None


async def open_socket(network: Network, family: int, kind: int, where: str) -> socket.socket:
    """Open a socket. Raises DialError."""
    try:
        return await network.open(family, kind)
    except OSError as error:
        raise _error(error, where) from None
    except errors.LimitExceeded as error:
        raise DialError(Why.SHORTAGE, error.text) from None
    except errors.Error as error:
        raise DialError(Why.OTHER, error.text) from None


async def _connect(network: Network, address: str, port: int) -> socket.socket:
    where = show_address(address, port)
    family = family_of(address)
    assert family is not None
    opened = await open_socket(network, family, socket.SOCK_STREAM, where)
    with contextlib.ExitStack() as stack:
        stack.callback(opened.close)
        try:
            await asyncio.get_running_loop().sock_connect(opened, (address, port))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise _error(error, where) from None
        stack.pop_all()
    return opened


async def _connect_unix(target: Target) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.ExitStack() as stack:
        stack.callback(opened.close)
        while True:
            try:
                opened.connect(target.path)
                break
            except BlockingIOError:  # its backlog is full, and nothing tells when it is not
                await asyncio.sleep(0.05)
            except OSError as error:
                raise _error(error, str(target)) from None
        stack.pop_all()
    return opened


async def _first(
    attempts: list[Callable[[], Coroutine[Any, Any, socket.socket]]],
) -> socket.socket:
    """Return the first that succeeds; each begins once those before have failed or are slow.

    Raises the last DialError if none does.
    """
    begun: list[asyncio.Task[socket.socket]] = []
    failed: DialError | None = None
    winner: socket.socket | None = None
    try:
        waiting = list(attempts)
        pending: set[asyncio.Task[socket.socket]] = set()
        while waiting or pending:
            if waiting:
                task = asyncio.create_task(waiting.pop(0)())
                begun.append(task)
                pending.add(task)
            done, pending = await asyncio.wait(
                pending,
                timeout=ATTEMPT_DELAY if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for each in done:
                error = each.exception()
                if error is None:
                    winner = each.result()
                    return winner
                if not isinstance(error, DialError):
                    raise error
                failed = error
        assert failed is not None
        raise failed
    finally:
        for each in begun:
            each.add_done_callback(_closer(winner))
            each.cancel()


def _closer(winner: socket.socket | None) -> Callable[[asyncio.Task[socket.socket]], None]:
    """Close what an attempt has connected too late."""

    def close(task: asyncio.Task[socket.socket]) -> None:
        if not task.cancelled() and not task.exception() and task.result() is not winner:
            task.result().close()

    return close


Dial = Callable[[Target], Awaitable[socket.socket]]
"""Connects through the tunnel. Raises DialError."""
