"""The resolver against name servers that the test plays, on loopback addresses."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from wg4netnsd import errors
from wg4netnsd.dns import resolver as resolvers
from wg4netnsd.dns.resolver import Resolver

ZONE = {
    ("host.example.", "A"): ["192.0.2.1", "192.0.2.2"],
    ("host.example.", "AAAA"): ["2001:db8::1"],
    ("four.example.", "A"): ["192.0.2.4"],
    ("six.example.", "AAAA"): ["2001:db8::6"],
    ("large.example.", "A"): [f"192.0.2.{n}" for n in range(1, 200)],
    ("alias.example.", "CNAME"): ["host.example."],
    ("loop.example.", "CNAME"): ["loop2.example."],
    ("loop2.example.", "CNAME"): ["loop.example."],
    ("xn--bcher-kva.example.", "A"): ["192.0.2.9"],
    ("deep.corp.example.", "A"): ["192.0.2.10"],
}


def answer(query: dns.message.Message, zone: dict[Any, Any] = ZONE) -> dns.message.Message:
    """Answer as a server that recurses."""
    response = dns.message.make_response(query)
    name, kind = (
        dns.name.from_text(query.question[0].name.to_text().lower()),
        query.question[0].rdtype.name,
    )
    seen = set()
    while (target := zone.get((name.to_text(), "CNAME"))) and name not in seen:
        seen.add(name)
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", *target))
        name = dns.name.from_text(target[0])
    if records := zone.get((name.to_text(), kind)):
        response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *records))
    elif not any(known == name.to_text() for known, _ in zone):
        response.set_rcode(dns.rcode.NXDOMAIN)
    return response


@dataclass
class Server:
    """A name server by UDP and TCP; `says` makes its answers, each a list of packets."""

    address: str
    says: Callable[[dns.message.Message, bool], list[bytes]]
    asked: list[str] = field(default_factory=list)

    async def __aenter__(self) -> "Server":
        loop = asyncio.get_running_loop()
        server = self

        class Datagrams(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, peer: Any) -> None:
                for packet in server.packets(data, False):
                    self.transport.sendto(packet, peer)

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                size = int.from_bytes(await reader.readexactly(2))
                for packet in self.packets(await reader.readexactly(size), True):
                    writer.write(len(packet).to_bytes(2) + packet)

        self.transport, _ = await loop.create_datagram_endpoint(
            Datagrams, local_addr=(self.address, PORT)
        )
        self.streams = await asyncio.start_server(stream, self.address, PORT)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()
        self.streams.close()

    def packets(self, data: bytes, by_tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(data)
        question = query.question[0]
        protocol = "tcp " if by_tcp else ""
        self.asked.append(f"{protocol}{question.name.to_text()} {question.rdtype.name}")
        return self.says(query, by_tcp)


PORT = 5353
FIRST, SECOND = "127.77.0.1", "127.77.0.2"


def good(query: dns.message.Message, by_tcp: bool) -> list[bytes]:
    response = answer(query)
    packet = response.to_wire(max_size=65535)
    if len(packet) > 1232 and not by_tcp:
        del response.answer[:]
        response.flags |= dns.flags.TC
        packet = response.to_wire()
    return [packet]


def says(rcode: str) -> Callable[[dns.message.Message, bool], list[bytes]]:
    def refuse(query: dns.message.Message, _: bool) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.from_text(rcode))
        return [response.to_wire()]

    return refuse


def nothing(query: dns.message.Message, by_tcp: bool) -> list[bytes]:
    return []


async def open_socket(family: int, kind: int) -> socket.socket:
    return socket.socket(family, kind)


def ask(*calls: tuple[str, int], servers: list[Server], search: tuple[str, ...] = ()) -> Any:
    """Resolve each name, one after the other: its addresses or its error."""

    async def run() -> list[Any]:
        found: list[Any] = []
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
            resolver = Resolver([s.address for s in servers], search, open_socket, PORT)
            for name, family in calls:
                try:
                    found.append(await resolver.resolve(name, family))
                except errors.Error as error:
                    found.append(error)
        return found

    return asyncio.run(run())


def one(name: str, family: int = socket.AF_INET, **options: Any) -> Any:
    (found,) = ask((name, family), **options)
    return found


@pytest.fixture
def server() -> Server:
    return Server(FIRST, good)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "TRY_TIME", 0.2)
    monkeypatch.setattr(resolvers, "OTHER_FAMILY_TIME", 0.2)


def test_addresses_of_each_family(server: Server) -> None:
    both, four, six = ask(
        ("host.example", socket.AF_UNSPEC),
        ("host.example", socket.AF_INET),
        ("Host.Example.", socket.AF_INET6),
        servers=[server],
    )
    assert sorted(both) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert sorted(four) == ["192.0.2.1", "192.0.2.2"]
    assert six == ["2001:db8::1"]


def test_a_host_of_one_family(server: Server) -> None:
    four, six, none = ask(
        ("four.example", socket.AF_UNSPEC),
        ("six.example", socket.AF_UNSPEC),
        ("four.example", socket.AF_INET6),
        servers=[server],
    )
    assert (four, six) == (["192.0.2.4"], ["2001:db8::6"])
    assert str(none) == "Unresolved: four.example: the host has no IPv6 address"


@pytest.mark.parametrize("unreachable", [socket.AF_INET, socket.AF_INET6])
def test_what_can_be_reached_comes_first(
    server: Server, monkeypatch: pytest.MonkeyPatch, unreachable: int
) -> None:
    async def can_reach(self: Resolver, address: str) -> bool:
        return (":" in address) != (unreachable == socket.AF_INET6)

    monkeypatch.setattr(Resolver, "_can_reach", can_reach)
    found = one("host.example", socket.AF_UNSPEC, servers=[server])
    assert (":" in found[0]) == (unreachable == socket.AF_INET)


def test_literals_are_not_asked_for(server: Server) -> None:
    found = ask(
        ("192.0.2.7", socket.AF_UNSPEC),
        ("2001:db8::7", socket.AF_INET6),
        ("2001:db8::7", socket.AF_INET),
        ("localhost", socket.AF_UNSPEC),
        ("a.localhost.", socket.AF_INET),
        servers=[server],
    )
    assert found[:2] == [["192.0.2.7"], ["2001:db8::7"]]
    assert str(found[2]) == "Unresolved: 2001:db8::7: not an IPv4 address"
    assert found[3:] == [["::1", "127.0.0.1"], ["127.0.0.1"]]
    assert server.asked == []


def test_no_such_host(server: Server) -> None:
    error = one("nowhere.example", servers=[server])
    assert str(error) == "Unresolved: nowhere.example: no such host (NXDOMAIN)"


def test_no_server() -> None:
    assert type(one("host.example", servers=[])) is errors.NoNameServer


def test_aliases(server: Server) -> None:
    assert sorted(one("alias.example", servers=[server])) == ["192.0.2.1", "192.0.2.2"]
    assert type(one("loop.example", servers=[Server(FIRST, good)])) is errors.Unresolved


def test_an_alias_that_the_server_does_not_follow() -> None:
    def partly(query: dns.message.Message, _: bool) -> list[bytes]:
        response = answer(query)
        del response.answer[1:]
        return [response.to_wire()]

    server = Server(FIRST, partly)
    assert sorted(one("alias.example", servers=[server])) == ["192.0.2.1", "192.0.2.2"]
    assert server.asked == ["alias.example. A", "host.example. A"]
    assert "more than 8 times" in str(one("loop.example", servers=[Server(FIRST, partly)]))


def test_a_long_answer_comes_by_tcp(server: Server) -> None:
    assert len(one("large.example", servers=[server])) == 199
    assert server.asked == ["large.example. A", "tcp large.example. A"]


@pytest.mark.parametrize("first", [nothing, says("SERVFAIL"), says("REFUSED")])
def test_the_next_server_is_asked(first: Any, server: Server) -> None:
    bad = Server(SECOND, first)
    assert one("four.example", servers=[bad, server]) == ["192.0.2.4"]
    assert bad.asked == ["four.example. A"]


def test_a_server_whose_port_is_closed(server: Server) -> None:
    async def run() -> list[str]:
        async with server:
            resolver = Resolver([SECOND, FIRST], (), open_socket, PORT)
            return await resolver.resolve("four.example", socket.AF_INET)

    assert asyncio.run(run()) == ["192.0.2.4"]


def test_silent_servers_are_asked_twice() -> None:
    silent = [Server(FIRST, nothing), Server(SECOND, nothing)]
    error = one("four.example", servers=silent)
    assert str(error) == f"Timeout: four.example: no answer from {FIRST}, {SECOND}"
    assert [server.asked for server in silent] == [["four.example. A"] * 2] * 2


def test_servers_that_fail() -> None:
    error = one(
        "four.example",
        servers=[Server(FIRST, says("SERVFAIL")), Server(SECOND, says("REFUSED"))],
    )
    expected = f"Unresolved: four.example: {FIRST}: SERVFAIL, {SECOND}: REFUSED"
    assert str(error) == expected


def test_all_of_it_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "TRY_TIME", 10)
    monkeypatch.setattr(resolvers, "RESOLVE_TIME", 0.2)
    error = one("four.example", servers=[Server(FIRST, nothing)])
    assert str(error) == "Timeout: four.example: no answer within 0.2 s"


def test_a_server_that_is_silent_about_one_family() -> None:
    def ipv4_only(query: dns.message.Message, by_tcp: bool) -> list[bytes]:
        return good(query, by_tcp) if query.question[0].rdtype.name == "A" else []

    found = one("host.example", socket.AF_UNSPEC, servers=[Server(FIRST, ipv4_only)])
    assert sorted(found) == ["192.0.2.1", "192.0.2.2"]


def test_a_server_without_edns() -> None:
    def old(query: dns.message.Message, by_tcp: bool) -> list[bytes]:
        return good(query, by_tcp) if query.edns < 0 else says("FORMERR")(query, by_tcp)

    assert one("four.example", servers=[Server(FIRST, old)]) == ["192.0.2.4"]


def _forgeries(query: dns.message.Message) -> Iterator[bytes]:
    """Packets that are no answer to it; each would give another address."""
    zone = {("four.example.", "A"): ["203.0.113.66"], ("evil.example.", "A"): ["203.0.113.66"]}
    wrong_id = dns.message.make_query("four.example", "A", id=query.id ^ 1)
    yield answer(wrong_id, zone).to_wire()
    yield answer(dns.message.make_query("evil.example", "A", id=query.id), zone).to_wire()
    yield query.to_wire()  # not a response
    yield b""
    yield b"x"
    yield query.id.to_bytes(2) + bytes([0x81, 0x80]) + b"\xff" * 30
    yield answer(query, zone).to_wire()[:-3]
    yield bytes(12)


def test_what_is_no_answer_is_passed_over() -> None:
    def forged(query: dns.message.Message, by_tcp: bool) -> list[bytes]:
        return [*_forgeries(query), *good(query, by_tcp)]

    assert one("four.example", servers=[Server(FIRST, forged)]) == ["192.0.2.4"]


SEARCH = ("corp.example", "example")


@pytest.mark.parametrize(
    ("name", "found", "asked"),
    [
        ("deep", ["192.0.2.10"], ["deep.corp.example."]),
        ("four", ["192.0.2.4"], ["four.corp.example.", "four.example."]),
        ("four.example", ["192.0.2.4"], ["four.example."]),
        (
            "deep.corp",
            ["192.0.2.10"],
            ["deep.corp.", "deep.corp.corp.example.", "deep.corp.example."],
        ),
        ("deep.", None, ["deep."]),
        ("none", None, ["none.corp.example.", "none.example.", "none."]),
    ],
)
def test_search_domains(server: Server, name: str, found: Any, asked: list[str]) -> None:
    result = one(name, servers=[server], search=SEARCH)
    assert [each.removesuffix(" A") for each in server.asked] == asked
    assert result == found if found else type(result) is errors.Unresolved


@pytest.mark.parametrize(
    "name", ["", "a b", "a\0b", "a\\032b", "a..b", ".", "x" * 64 + ".example", "x." * 130, "\n"]
)
def test_names_that_can_be_no_host_s(server: Server, name: str) -> None:
    assert type(one(name, servers=[server])) in (errors.InvalidArgs, errors.Unresolved)
    assert server.asked in ([], [". A"])


def test_international_names(server: Server) -> None:
    assert one("bücher.example", servers=[server]) == ["192.0.2.9"]


def test_a_socket_that_can_t_be_opened(server: Server) -> None:
    async def fail(family: int, kind: int) -> socket.socket:
        raise errors.TunFailed("the interface is gone")

    async def run() -> Awaitable[list[str]]:
        return await Resolver([FIRST], (), fail, PORT).resolve("four.example")  # type: ignore[return-value]

    with pytest.raises(errors.TunFailed):
        asyncio.run(run())
