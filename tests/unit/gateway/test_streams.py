"""Forwards of streams that are no proxy: local, remote, and who may use them."""

import asyncio
import os
import socket
import tempfile

import pytest

from support.gateways import Loopback, client, echo, exchange, forward, run, server, settled
from wg4netnsd.gateway import stream_forward
from wg4netnsd.gateway.access import Access
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.stream_forward import StreamForward

LOCAL = AddForward("1", "local", target="x", connect_seconds=5)
NAMES = {"echo.test": ["127.0.0.1"]}


def test_a_local_port_leads_to_its_target() -> None:
    async def test() -> None:
        async with (
            server(echo) as far,
            forward(LOCAL._replace(target=f"echo.test:{far}"), NAMES) as (port, served),
        ):
            assert await exchange(port, b"hello", end=True) == b"hello"
            counters = await settled(served)
            assert counters == (0, 1, 0, 0, 5, 5)

    run(test)


def test_a_target_that_is_not_there_ends_the_connection() -> None:
    async def test() -> None:
        async with forward(LOCAL._replace(target="nowhere.test:1"), NAMES) as (port, served):
            assert await exchange(port, b"hello") in (b"", b"reset")
            assert (await settled(served)).failed == 1

    run(test)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_remote_forward_tells_the_far_clients_address(host: str) -> None:
    heard = asyncio.Queue[bytes]()

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.readexactly(12 + 4 + (12 if "." in host else 36)))
        await echo(reader, writer)

    async def test() -> None:
        async with server(web) as far:
            spec = AddForward("1", "remote", target=f"127.0.0.1:{far}", proxy_protocol=True)
            async with forward(spec, host=host) as (port, served):
                async with client(port, host) as (reader, writer):
                    me = writer.get_extra_info("sockname")
                    writer.write(b"hello")
                    assert await reader.readexactly(5) == b"hello"
                header = await heard.get()
                assert header.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21")
                assert header.endswith(me[1].to_bytes(2, "big") + port.to_bytes(2, "big"))
                assert header[16:].startswith(
                    socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
                )
                counters = await settled(served)
                assert (counters.bytes_in, counters.bytes_out) == (5, 5)

    run(test)


def test_a_remote_forward_can_lead_to_a_unix_socket() -> None:
    async def test() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/web"
            spec = AddForward("1", "remote", target=f"unix:{path}")
            async with forward(spec) as (port, served):
                assert await exchange(port, b"x") in (b"", b"reset")
                async with await asyncio.start_unix_server(_echo_and_close, path):
                    assert await exchange(port, b"hello", end=True) == b"hello"
                assert (await settled(served)).failed == 1

    run(test)


async def _echo_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await echo(reader, writer)
    writer.close()


def test_a_unix_socket_can_be_a_listener() -> None:
    async def test() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/db"
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
            listener.setblocking(False)
            sides = Sides()
            sides.tunnel = Loopback(NAMES)  # type: ignore[assignment]
            async with server(echo) as far:
                spec = LOCAL._replace(target=f"echo.test:{far}")
                served = StreamForward(spec, [listener], sides)
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"hello")
                writer.write_eof()
                assert await reader.read() == b"hello"
                writer.close()
                assert (await settled(served)).total == 1
                sides.access._uid += 1
                reader, writer = await asyncio.open_unix_connection(path)
                assert await reader.read() == b""
                writer.close()
                assert served.counters().refused == 1
                served.close()
                sides.close()

    run(test)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_another_uids_client_is_closed_counted_and_logged_once(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with (
            server(echo) as far,
            forward(LOCAL._replace(target=f"127.0.0.1:{far}"), host=host) as (port, served),
        ):
            monkeypatch.setattr(served._sides.access, "_uid", os.geteuid() + 1)
            for _ in range(5):
                async with client(port, host) as (reader, _):
                    assert await reader.read() == b""
            assert served.counters() == (0, 0, 5, 0, 0, 0)

    run(test)
    assert capsys.readouterr().err == (
        f"wg4netns-gateway: forward 1: refused a client of uid {os.geteuid()}\n"
    )


def test_anyone_may_be_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with server(echo) as far:
            spec = LOCAL._replace(target=f"127.0.0.1:{far}", access="anyone")
            async with forward(spec) as (port, served):
                monkeypatch.setattr(served._sides.access, "_uid", os.geteuid() + 1)
                assert await exchange(port, b"hello", end=True) == b"hello"

    run(test)


def test_the_kernel_says_whose_a_connection_is() -> None:
    async def test() -> None:
        access = Access()
        with (
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
            socket.create_server(("127.0.0.1", 0)) as v4,
        ):
            for listener, host in ((both, "127.0.0.1"), (both, "::1"), (v4, "127.0.0.1")):
                with socket.create_connection((host, listener.getsockname()[1])):
                    accepted, _ = listener.accept()
                    with accepted:
                        assert access.refused_uid(accepted) is None
            for reset in (False, True):  # closed both ways, it is nobody's, and not root's
                gone = socket.create_connection(v4.getsockname())
                ends = gone.getsockname(), gone.getpeername()
                accepted, _ = v4.accept()
                with accepted:
                    if reset:
                        accepted.shutdown(socket.SHUT_WR)
                    gone.close()
                    assert access._ask(socket.IPPROTO_TCP, *ends) == -1
            # No connection has these ends; whoever listens at one of them is not its client.
            nobody = ("127.0.0.1", 1)
            assert access._ask(socket.IPPROTO_TCP, v4.getsockname(), nobody) == -1
            assert access._ask(socket.IPPROTO_TCP, nobody, v4.getsockname()) == -1
        access.close()

    run(test)


def test_without_fds_clients_wait_and_are_served_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """accept(2) refuses as with a full table of descriptors, some times."""
    lacking = [24, 23, 12]  # EMFILE, ENFILE, ENOMEM
    accept = stream_forward.accept

    def refuse(listener: socket.socket) -> socket.socket:
        if lacking:
            raise OSError(lacking.pop(), "as if")
        return accept(listener)

    monkeypatch.setattr(stream_forward, "SHORTAGE_SECONDS", 0.05)

    async def test() -> None:
        async with (
            server(echo) as far,
            forward(LOCAL._replace(target=f"127.0.0.1:{far}")) as (port, served),
        ):
            monkeypatch.setattr(stream_forward, "accept", refuse)
            assert await exchange(port, b"hello", end=True) == b"hello"
            assert not lacking
            assert (await settled(served)).total == 1

    run(test)


def test_one_connection_of_many_is_let_go_as_it_came() -> None:
    """No fd is left after clients of all kinds."""

    async def test() -> None:
        async with (
            server(echo) as far,
            forward(LOCAL._replace(target=f"127.0.0.1:{far}")) as (port, served),
        ):
            await exchange(port, b"x", end=True)
            await settled(served)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(50):
                assert await exchange(port, b"hello", end=True) == b"hello"
            await settled(served)
            assert len(os.listdir("/proc/self/fd")) <= before + 2

    run(test)
