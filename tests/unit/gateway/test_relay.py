"""Relays between sockets of this process: wg4netnsd/gateway/relay.py."""

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from wg4netnsd.gateway import pipes
from wg4netnsd.gateway.relay import Relay, Relays

Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    return client, accepted


def unix_pair() -> Pair:
    return socket.socketpair()


PAIRS = pytest.mark.parametrize("pair", [tcp_pair, unix_pair])


class Stage:
    """One relay between `outer`, outside the tunnel, and `inner`, inside it."""

    def __init__(self, pair: Callable[[], Pair]) -> None:
        self.outer, outside = pair()
        self.inner, inside = pair()
        for each in (self.outer, self.inner, outside, inside):
            each.setblocking(False)
        self.ended = asyncio.Event()
        self.relay = Relay(outside, inside, lambda _: self.ended.set())
        self.relays = Relays()
        self.relays.start(self.relay)
        self.loop = asyncio.get_running_loop()

    async def read(self, side: socket.socket, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = await self.loop.sock_recv(side, 1 << 20)
            assert more, "an early end"
            data += more
        return data

    async def read_to_end(self, side: socket.socket) -> bytes:
        data = b""
        while more := await self.loop.sock_recv(side, 1 << 20):
            data += more
        return data


def run(test: Callable[[Stage], Awaitable[Any]], pair: Callable[[], Pair] = tcp_pair) -> None:
    async def body() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        stage = Stage(pair)
        async with asyncio.timeout(60):
            await test(stage)
        stage.relays.close()
        assert stage.ended.is_set()
        stage.outer.close()
        stage.inner.close()
        assert sorted(os.listdir("/proc/self/fd")) == before

    asyncio.run(body())


@PAIRS
def test_bytes_pass_both_ways_as_they_are(pair: Callable[[], Pair]) -> None:
    sent = random.Random(1).randbytes(5_000_000)

    async def test(stage: Stage) -> None:
        for source, sink in ((stage.outer, stage.inner), (stage.inner, stage.outer)):
            _, received = await asyncio.gather(
                stage.loop.sock_sendall(source, sent), stage.read(sink, len(sent))
            )
            assert received == sent
        assert stage.relay.inwards.passed == stage.relay.outwards.passed == len(sent)

    run(test, pair)


@PAIRS
def test_half_a_close_is_passed_on_and_the_other_half_goes_on(pair: Callable[[], Pair]) -> None:
    async def test(stage: Stage) -> None:
        await stage.loop.sock_sendall(stage.outer, b"question")
        stage.outer.shutdown(socket.SHUT_WR)
        assert await stage.read_to_end(stage.inner) == b"question"
        await stage.loop.sock_sendall(stage.inner, b"answer")
        assert await stage.read(stage.outer, 6) == b"answer"
        assert not stage.ended.is_set()
        stage.inner.close()
        assert await stage.read_to_end(stage.outer) == b""
        await stage.ended.wait()

    run(test, pair)


@PAIRS
def test_all_bytes_arrive_of_one_who_sends_and_closes(pair: Callable[[], Pair]) -> None:
    sent = bytes(100_000)

    async def test(stage: Stage) -> None:
        await stage.loop.sock_sendall(stage.outer, sent)
        stage.outer.close()
        assert await stage.read_to_end(stage.inner) == sent
        stage.inner.close()
        await stage.ended.wait()

    run(test, pair)


def test_a_reset_is_passed_on_as_one() -> None:
    async def test(stage: Stage) -> None:
        await stage.loop.sock_sendall(stage.outer, b"x")
        assert await stage.read(stage.inner, 1) == b"x"
        stage.outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stage.outer.close()
        with pytest.raises(ConnectionResetError):
            await stage.loop.sock_recv(stage.inner, 1)
        await stage.ended.wait()

    run(test)


def test_a_reset_after_half_a_close_ends_the_connection() -> None:
    async def test(stage: Stage) -> None:
        stage.outer.shutdown(socket.SHUT_WR)
        assert await stage.read_to_end(stage.inner) == b""
        stage.outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stage.outer.close()
        await stage.ended.wait()

    run(test)


@PAIRS
def test_a_sink_that_takes_nothing_holds_a_pipe_and_nobody_up(pair: Callable[[], Pair]) -> None:
    async def test(stage: Stage) -> None:
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await stage.loop.sock_sendall(stage.outer, bytes(65536))
                    sent += 65536
        assert stage.relay.inwards.held
        await stage.loop.sock_sendall(stage.inner, b"the other way")
        assert await stage.read(stage.outer, 13) == b"the other way"
        stage.outer.shutdown(socket.SHUT_WR)
        assert sent <= len(await stage.read_to_end(stage.inner)) <= sent + 65536
        assert stage.relay.inwards.pipe is None

    run(test, pair)


@PAIRS
def test_without_a_pipe_bytes_are_copied(
    pair: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "MAX_PIPES", 0)
    test_bytes_pass_both_ways_as_they_are(pair)
    test_half_a_close_is_passed_on_and_the_other_half_goes_on(pair)
    test_all_bytes_arrive_of_one_who_sends_and_closes(pair)


def test_a_thousand_idle_connections_hold_no_pipe() -> None:
    async def test() -> None:
        before = len(os.listdir("/proc/self/fd"))
        relays = Relays()
        kept = []
        for _ in range(50):
            (outer, outside), (inner, inside) = unix_pair(), unix_pair()
            for each in (outside, inside):
                each.setblocking(False)
            relays.start(Relay(outside, inside, lambda _: None))
            outer.sendall(b"x")
            kept += [outer, inner]
        inner.setblocking(False)
        await asyncio.get_running_loop().sock_recv(inner, 1)
        assert len(os.listdir("/proc/self/fd")) <= before + 1 + 4 * 50 + 2 * pipes.MAX_SPARE
        relays.close()
        for each in kept:
            each.close()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(test())


def test_a_busy_connection_does_not_keep_others_waiting() -> None:
    async def test() -> None:
        relays = Relays()
        (outer, outside), (inner, inside) = unix_pair(), unix_pair()
        (quiet_outer, quiet_outside), (quiet_inner, quiet_inside) = unix_pair(), unix_pair()
        for each in (outer, inner, outside, inside, quiet_outside, quiet_inside, quiet_inner):
            each.setblocking(False)
        loop = asyncio.get_running_loop()
        relays.start(Relay(outside, inside, lambda _: None))
        relays.start(Relay(quiet_outside, quiet_inside, lambda _: None))

        async def flood() -> None:
            while True:
                await loop.sock_sendall(outer, bytes(1 << 20))

        async def drain() -> None:
            while True:
                await loop.sock_recv(inner, 1 << 20)

        tasks = [asyncio.create_task(flood()), asyncio.create_task(drain())]
        for _ in range(20):
            quiet_outer.sendall(b"ping")
            async with asyncio.timeout(10):
                assert await loop.sock_recv(quiet_inner, 4) == b"ping"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        relays.close()
        for each in (outer, inner, quiet_outer, quiet_inner):
            each.close()

    asyncio.run(test())
