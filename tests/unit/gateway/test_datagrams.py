"""UDP: the relay of a SOCKS 5 client, and forwards of datagrams."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from support.gateways import Loopback, client, forward, run, settled
from wg4netnsd.gateway import datagram_forward
from wg4netnsd.gateway.datagram_forward import DatagramForward
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.socks import encode_datagram, parse_datagram

NAMES = {"echo.test": ["127.0.0.1"]}
PROXY = AddForward("1", "proxy", connect_seconds=5)


@contextlib.contextmanager
def udp(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as made:
        made.bind((host, 0))
        made.setblocking(False)
        yield made


async def receive(sock: socket.socket, seconds: float = 10) -> tuple[bytes, Any]:
    async with asyncio.timeout(seconds):
        return await asyncio.get_running_loop().sock_recvfrom(sock, 65536)


async def nothing_comes(sock: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        await receive(sock, 0.2)


@contextlib.contextmanager
def udp_echo(host: str = "127.0.0.1") -> Iterator[int]:
    """Answer each datagram with itself and a mark; yield the port."""
    loop = asyncio.get_running_loop()
    with udp(host) as far:

        def answer() -> None:
            data, sender = far.recvfrom(65536)
            far.sendto(b"<" + data + b">", sender)

        loop.add_reader(far, answer)
        yield far.getsockname()[1]
        loop.remove_reader(far)


@contextlib.asynccontextmanager
async def association(
    port: int, claimed: tuple[str, int] = ("0.0.0.0", 0), host: str = "127.0.0.1"
) -> AsyncIterator[tuple[tuple[str, int], asyncio.StreamWriter]]:
    """Ask for a UDP relay; yield its address, and the connection that keeps it."""
    async with client(port, host) as (reader, writer):
        request = encode_datagram(*claimed, b"")
        writer.write(b"\5\1\0" + b"\5\3" + request[2:])
        assert await reader.readexactly(5) == b"\5\0\5\0\0"
        kind = await reader.readexactly(1)
        rest = await reader.readexactly(6 if kind == b"\1" else 18)
        address, number, _ = parse_datagram(b"\0\0\0" + kind + rest)
        yield (address, number), writer


def test_datagrams_go_out_and_come_back_with_their_sender() -> None:
    async def test() -> None:
        with udp_echo() as far, udp() as mine, udp_echo() as other:
            async with forward(PROXY, NAMES) as (port, served), association(port) as (relay, _):
                assert relay[0] == "127.0.0.1"
                for target in (far, other):
                    mine.sendto(encode_datagram("127.0.0.1", target, b"hi"), relay)
                    data, sender = await receive(mine)
                    assert sender == relay
                    assert parse_datagram(data) == ("127.0.0.1", target, b"<hi>")
                name = b"\0\0\0\3\x09echo.test" + far.to_bytes(2, "big")
                for text in (b"by name", b"again"):
                    mine.sendto(name + text, relay)
                    data, _ = await receive(mine)
                    assert parse_datagram(data)[2] == b"<" + text + b">"
                mine.sendto(encode_datagram("127.0.0.1", far, b"x" * 60_000), relay)
                assert len((await receive(mine))[0]) == 10 + 60_002
            counters = await settled(served)
            assert counters.bytes_out == 2 + 2 + 7 + 5 + 60_000
            assert counters.bytes_in == counters.bytes_out + 5 * 2

    run(test)


def test_the_relay_takes_from_its_client_alone() -> None:
    async def test() -> None:
        with udp_echo() as far, udp() as mine, udp() as another:
            async with forward(PROXY, NAMES) as (port, served):
                async with association(port, mine.getsockname()) as (relay, _):
                    another.sendto(encode_datagram("127.0.0.1", far, b"no"), relay)
                    mine.sendto(encode_datagram("127.0.0.1", far, b"yes"), relay)
                    assert parse_datagram((await receive(mine))[0])[2] == b"<yes>"
                    another.sendto(encode_datagram("127.0.0.1", far, b"no"), relay)
                    await nothing_comes(another)
                    await nothing_comes(mine)
                assert (await settled(served)).refused == 1

    run(test)


def test_another_uid_gets_no_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with udp_echo() as far, udp() as mine:
            async with forward(PROXY, NAMES) as (port, served):
                async with association(port) as (relay, _):
                    monkeypatch.setattr(served._sides.access, "_uid", os.geteuid() + 1)
                    mine.sendto(encode_datagram("127.0.0.1", far, b"no"), relay)
                    await nothing_comes(mine)
                assert (await settled(served)).refused == 1

    run(test)


def test_the_relay_ends_with_the_connection() -> None:
    async def test() -> None:
        with udp() as mine:
            async with forward(PROXY, NAMES) as (port, served):
                async with association(port) as (relay, _):
                    assert served.counters().open == 1
                await settled(served)
                mine.connect(relay)
                mine.send(b"x")
                with pytest.raises(ConnectionRefusedError):
                    await receive(mine)

    run(test)


@pytest.mark.parametrize(
    "text", [b"", b"\0\0\0", b"\0\0\1\1\x7f\0\0\1\0\7x", b"\0\0\0\7", b"x" * 500]
)
def test_what_is_no_datagram_of_socks_is_dropped(text: bytes) -> None:
    async def test() -> None:
        with udp_echo() as far, udp() as mine:
            async with forward(PROXY, NAMES) as (port, _), association(port) as (relay, _):
                mine.sendto(text, relay)
                mine.sendto(encode_datagram("127.0.0.1", far, b"hi"), relay)
                assert parse_datagram((await receive(mine))[0])[2] == b"<hi>"

    run(test)


def test_a_client_of_ipv6_has_its_relay_there() -> None:
    async def test() -> None:
        with udp_echo() as far, udp("::1") as mine:
            async with (
                forward(PROXY, NAMES, host="::1") as (port, _),
                association(port, host="::1") as (relay, _),
            ):
                assert relay[0] == "::1"
                mine.sendto(encode_datagram("127.0.0.1", far, b"hi"), relay)
                assert parse_datagram((await receive(mine))[0]) == ("127.0.0.1", far, b"<hi>")

    run(test)


# ---------------------------------------------------------------- forwards


@contextlib.contextmanager
def datagrams(target: str, **spec: Any) -> Iterator[tuple[tuple[str, int], DatagramForward]]:
    """Forward datagrams to a target; yield the listener's address, and the forward."""
    sides = Sides()
    sides.tunnel = Loopback(NAMES)  # type: ignore[assignment]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        added = AddForward("1", "local", "udp", target)._replace(**spec)
        served = DatagramForward(added, [listener], sides)
        yield listener.getsockname(), served
        served.close()
        sides.close()


def with_datagrams(
    test: Callable[[tuple[str, int], DatagramForward], Awaitable[Any]], **spec: Any
) -> None:
    async def body() -> None:
        with (
            udp_echo() as far,
            datagrams(f"echo.test:{far}", **spec) as (address, served),
        ):
            await test(address, served)
        await asyncio.sleep(0)

    run(body)


def test_each_sender_has_a_flow_of_its_own() -> None:
    async def test(address: tuple[str, int], served: DatagramForward) -> None:
        with udp() as one, udp() as two:
            for _ in range(3):
                for each in (one, two):
                    each.sendto(b"%d" % each.getsockname()[1], address)
                for each in (one, two):
                    data, sender = await receive(each)
                    assert (data, sender) == (b"<%d>" % each.getsockname()[1], address)
        counters = served.counters()
        assert (counters.open, counters.total) == (2, 2)
        assert counters.bytes_in == counters.bytes_out + 6 * 2

    with_datagrams(test)


def test_a_flow_ends_when_it_is_idle_and_begins_anew() -> None:
    async def test(address: tuple[str, int], served: DatagramForward) -> None:
        with udp() as mine:
            for total in (1, 2):
                mine.sendto(b"hi", address)
                await receive(mine)
                assert served.counters()[:2] == (1, total)
                while served.counters().open:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    with_datagrams(test, idle_seconds=0.2)


def test_too_many_flows_end_the_one_that_was_idle_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagram_forward, "MAX_FLOWS", 2)

    async def test(address: tuple[str, int], served: DatagramForward) -> None:
        with udp() as one, udp() as two, udp() as three:
            for each in (one, two, one, three):
                each.sendto(b"hi", address)
                await receive(each)
            assert served.counters()[:2] == (2, 3)
            one.sendto(b"hi", address)
            await receive(one)
            assert served.counters()[:2] == (2, 3)
            two.sendto(b"hi", address)
            await receive(two)
            assert served.counters()[:2] == (2, 4)

    with_datagrams(test)


def test_another_uids_datagrams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(address: tuple[str, int], served: DatagramForward) -> None:
        monkeypatch.setattr(served._sides.access, "_uid", os.geteuid() + 1)
        with udp() as mine:
            mine.sendto(b"hi", address)
            await nothing_comes(mine)
        assert served.counters()[:3] == (0, 0, 1)

    with_datagrams(test)


def test_a_target_that_can_not_be_found_costs_its_datagrams_only() -> None:
    async def body() -> None:
        with datagrams("nowhere.test:1") as (address, served), udp() as mine:
            mine.sendto(b"hi", address)
            while not served.counters().failed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert served.counters()[:4] == (0, 1, 0, 1)
        with datagrams("127.0.0.1:1") as (address, served), udp() as mine:
            for _ in range(3):
                mine.sendto(b"hi", address)
                await asyncio.sleep(0.05)
            assert served.counters().open == 1

    run(body)
