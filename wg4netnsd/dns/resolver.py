"""Look up host names at a tunnel's name servers, through the tunnel.

As the C library does it with the tunnel's resolv.conf: the same servers, tries and search domains.
The host's files and servers are never asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

from wg4netnsd import errors

if TYPE_CHECKING:
    from wg4netnsd.dns.messages import Answer, Question

OpenSocket = Callable[[int, int], Awaitable[socket.socket]]
"""Opens a socket in the tunnel: of a family (AF_INET …) and type (SOCK_STREAM …)."""

PORT: Final = 53
MAX_SERVERS: Final = 3  # MAXNS of resolv.h
MAX_SEARCH: Final = 6  # MAXDNSRCH of resolv.h, before glibc 2.26
ATTEMPTS: Final = 2  # RES_DFLRETRY
MAX_ALIASES: Final = 8

TRY_TIME: Final = 5.0
"""Seconds that a server gets for a try, as RES_TIMEOUT. A lost handshake is repeated after as long
(REKEY_TIMEOUT), so the second try still gets through a tunnel that has just begun."""

RESOLVE_TIME: Final = 20.0
"""Seconds for everything; most D-Bus clients wait for 25."""

OTHER_FAMILY_TIME: Final = 1.0
"""Seconds that the answer for one family is waited for once there are addresses of the other: some
servers never answer to AAAA."""

_HOST: Final = re.compile(r"[^\x00-\x20\\\x7f]{1,254}")
_LOOPBACK: Final = {socket.AF_INET6: "::1", socket.AF_INET: "127.0.0.1"}
_FAMILIES: Final = {socket.AF_INET6: "IPv6", socket.AF_INET: "IPv4"}


class Resolver:
    """Asks name servers, in turn."""

    def __init__(
        self,
        servers: Iterable[str],
        search: Iterable[str],
        open_socket: OpenSocket,
        port: int = PORT,
    ) -> None:
        """`servers`: IP addresses. `search`: the domains that a short name may be in."""
        self._servers = list(servers)[:MAX_SERVERS]
        self._search = list(search)[:MAX_SEARCH]
        self._open_socket = open_socket
        self._port = port

    async def resolve(self, name: str, family: int = socket.AF_UNSPEC) -> list[str]:
        """Return a host's addresses of a family, or of both: the ones that can be reached first.

        An address is its own. Raises Unresolved (no such name, no address, or no server knows),
        NoNameServer, Timeout, InvalidArgs, and what opening a socket raises.
        """
        if literal := _parse_address(name):
            if family not in (socket.AF_UNSPEC, _family_of(literal)):
                family_name = _FAMILIES[socket.AddressFamily(family)]
                raise errors.Unresolved(f"{name}: not an {family_name} address")
            return [name]
        if not _HOST.fullmatch(name):
            raise errors.InvalidArgs(f"{errors.quote(name)}: expected a host name or an address")
        families = [each for each in _FAMILIES if family in (socket.AF_UNSPEC, each)]
        if f".{name.lower().rstrip('.')}".endswith(".localhost"):  # RFC 6761, section 6.3
            return [_LOOPBACK[each] for each in families]
        if not self._servers:
            raise errors.NoNameServer(f"{name}: the tunnel's configuration has no DNS server")
        try:
            async with asyncio.timeout(RESOLVE_TIME):
                return await self._look_up(name, families)
        except TimeoutError:
            raise errors.Timeout(f"{name}: no answer within {RESOLVE_TIME:g} s") from None

    async def _look_up(self, name: str, families: list[socket.AddressFamily]) -> list[str]:
        problem: errors.Error | None = None
        for candidate in self._candidates(name):
            try:
                return await self._ask_for_families(candidate, families)
            except errors.Unresolved as error:
                problem = problem or error
        assert problem
        raise problem

    def _candidates(self, name: str) -> list[str]:
        """Return the names to ask for, in turn; as resolv.conf(5) with `ndots:1`."""
        if name.endswith("."):
            return [name]
        longer = [f"{name}.{domain}" for domain in self._search]
        return [name, *longer] if "." in name else [*longer, name]

    async def _ask_for_families(self, name: str, families: list[socket.AddressFamily]) -> list[str]:
        """Ask for all families at once. Raises the first family's error if none has an address."""
        tasks = {each: asyncio.create_task(self._ask(name, each)) for each in families}
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            succeeded = any(task.done() and not task.exception() for task in tasks.values())
            await asyncio.wait(tasks.values(), timeout=OTHER_FAMILY_TIME if succeeded else None)
        finally:
            for task in tasks.values():
                task.cancel()
        found = {
            each: task.result()
            for each, task in tasks.items()
            if task.done() and not task.cancelled() and not task.exception()
        }
        if not found:
            failed = [error for task in tasks.values() if (error := task.exception())]
            raise next((e for e in failed if not isinstance(e, errors.Unresolved)), failed[0])
        if len(found) > 1 and not await self._can_reach(found[families[0]][0]):
            found = dict(reversed(found.items()))
        return [address for addresses in found.values() for address in addresses]

    async def _can_reach(self, address: str) -> bool:
        """Return whether there is a route to an address; as RFC 6724, rule 1 wants to know."""
        with await self._open_socket(_family_of(address), socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, self._port))  # sends nothing
            except OSError:
                return False
        return True

    # ------------------------------------------------------------ one family

    async def _ask(self, name: str, family: socket.AddressFamily) -> list[str]:
        """Return the addresses of exactly this name, or of what it is an alias of."""
        asked = name
        for _ in range(MAX_ALIASES):
            answer = await self._ask_servers(asked, family)
            if answer.addresses:
                return list(dict.fromkeys(answer.addresses))
            if answer.rcode == "NXDOMAIN":
                raise errors.Unresolved(f"{name}: no such host (NXDOMAIN)")
            if not answer.alias_of:
                raise errors.Unresolved(f"{name}: the host has no {_FAMILIES[family]} address")
            asked = answer.alias_of
        raise errors.Unresolved(f"{name}: an alias of an alias, more than {MAX_ALIASES} times")

    async def _ask_servers(self, name: str, family: socket.AddressFamily) -> Answer:
        """Return the first answer that settles the question.

        Raises Unresolved if every server refuses or fails, Timeout if one gives no answer.
        """
        from wg4netnsd.dns.messages import Question  # not earlier; see there

        try:
            question = Question(name, family)
        except ValueError as error:
            raise errors.InvalidArgs(f"{errors.quote(name)}: {error}") from None
        silent, problems = self._servers, []
        for _ in range(ATTEMPTS):
            trying, silent = silent, []
            for server in trying:
                try:
                    async with asyncio.timeout(TRY_TIME):
                        answer = await self._exchange(server, question)
                        if answer.rcode == "FORMERR":  # it may not know EDNS: RFC 6891, section 7
                            plain = Question(name, family, extended=False)
                            answer = await self._exchange(server, plain)
                except TimeoutError:
                    silent.append(server)
                except OSError as error:
                    problems.append(f"{server}: {error.strerror or error}")
                else:
                    if answer.rcode in ("NOERROR", "NXDOMAIN"):
                        return answer
                    problems.append(f"{server}: {answer.rcode}")
        if silent:
            raise errors.Timeout(f"{name}: no answer from {', '.join(silent)}")
        raise errors.Unresolved(f"{name}: {', '.join(problems)}")

    async def _exchange(self, server: str, question: Question) -> Answer:
        """Ask one server: by UDP, and by TCP if the answer is too long for that. Raises OSError."""
        answer = await self._exchange_datagrams(server, question)
        return await self._exchange_stream(server, question) if answer.truncated else answer

    async def _exchange_datagrams(self, server: str, question: Question) -> Answer:
        loop = asyncio.get_running_loop()
        with await self._connect(server, socket.SOCK_DGRAM) as connection:
            await loop.sock_sendall(connection, question.packet)
            while True:  # what is not an answer to this very question may be anybody's
                if answer := question.read_answer(await loop.sock_recv(connection, 65535)):
                    return answer

    async def _exchange_stream(self, server: str, question: Question) -> Answer:
        loop = asyncio.get_running_loop()
        with await self._connect(server, socket.SOCK_STREAM) as connection:
            size = len(question.packet).to_bytes(2)
            await loop.sock_sendall(connection, size + question.packet)
            size = await _receive(connection, 2)
            answer = question.read_answer(await _receive(connection, int.from_bytes(size)))
        if not answer or answer.truncated:
            raise OSError("not an answer")
        return answer

    async def _connect(self, server: str, kind: socket.SocketKind) -> socket.socket:
        connection = await self._open_socket(_family_of(server), kind)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (server, self._port))
        except BaseException:
            connection.close()
            raise
        return connection


async def _receive(connection: socket.socket, size: int) -> bytes:
    """Receive exactly so many bytes. Raises OSError if the stream ends before."""
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        if not more:
            raise OSError("the connection ended early")
        data += more
    return data


def _parse_address(text: str) -> str:
    """Return `text` if it is an IP address, else ""."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(text)
        return text
    return ""


def _family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
