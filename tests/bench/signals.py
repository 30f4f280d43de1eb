"""From the end of a handshake, by the engine's clock, until a subscriber has read the signal.

In turns with it, the same signal from a bus client that only sends it: the share of bus and
subscriber.
"""

import argparse
import base64
import contextlib
import multiprocessing
import socket
import time
from multiprocessing.connection import Connection
from typing import NamedTuple, Self

from jeepney import DBusAddress, HeaderFields, new_signal

from bench.record import Table
from bench.tunnels import daemon_with
from support import stage as stages
from support.bus import TUNNEL, Client
from support.daemon import Daemon

ROUND = 1.25
"""Seconds between handshakes of a tunnel, enough for wg4netnsd/peers/rate_limit.py to delay no
signal, and for the far end, which takes a handshake every 1/50 s, to refuse none."""

BARE = "/org/wg4netns1/bare/"
"""The bare signals' object paths begin with this."""


BARE_NAME = "floor: a bare signal"


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    assert 1 <= arguments.tunnels <= len(stage.clients), f"the stage has {len(stage.clients)}"
    confs = {f"t{number}": stage.conf(number) for number in range(arguments.tunnels)}
    peer = stage.far.public_key
    tables = []
    with (
        daemon_with(confs, wait="handshake") as (daemon, paths),
        Client(daemon.address) as sender,
        contextlib.ExitStack() as stack,
    ):
        subscriber = stack.enter_context(_Subscriber(daemon.address))
        tunnels = [
            stack.enter_context(_Tunnel(daemon, name, path, peer)) for name, path in paths.items()
        ]
        bare = [_Bare(sender, f"{BARE}{name}", peer) for name in paths]
        for size, how in ((1, "one at a time"), (len(tunnels), f"{len(tunnels)} at once")):
            pause = ROUND / (2 * len(tunnels) / size)
            ours: list[float] = []
            theirs: list[float] = []
            for first in list(range(0, len(tunnels), size)) * arguments.rounds:
                ours += subscriber.time(tunnels[first : first + size], pause)
                theirs += subscriber.time(bare[first : first + size], pause)
            rows = {"wg4netnsd": ours, BARE_NAME: theirs}
            title = f"From a handshake to its signal, {how}"
            tables.append(Table(title, "ms", rows, reference=BARE_NAME))
    return tables


# ---------------------------------------------------------------- senders


class _Tunnel:
    """A tunnel that begins a handshake on request."""

    def __init__(self, daemon: Daemon, name: str, path: str, peer: str) -> None:
        self.path = path
        self._engine = socket.socket(socket.AF_UNIX)
        self._engine.settimeout(10)
        (uapi,) = (daemon.directory / name).glob("*.sock")
        self._engine.connect(str(uapi))
        key = base64.b64decode(peer).hex()
        self._request = f"set=1\npublic_key={key}\nupdate_only=true\ninitiate=true\n\n".encode()

    def start(self) -> None:
        self._engine.sendall(self._request)

    def finish(self) -> None:
        reply = b""
        while not reply.endswith(b"\n\n"):
            received = self._engine.recv(4096)
            assert received, "the engine has ended"
            reply += received
        assert reply == b"errno=0\n\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


class _Bare:
    """A client that sends the bare signal on request."""

    def __init__(self, sender: Client, path: str, peer: str) -> None:
        self.path = path
        self._sender = sender
        self._emitter = DBusAddress(path, interface=TUNNEL)
        self._peer = peer

    def start(self) -> None:
        details = {"role": ("s", "initiator"), "endpoint": ("s", ""), "missed": ("u", 0)}
        body = (self._peer, time.time_ns() // 1000, details)
        self._sender.connection.send(new_signal(self._emitter, "Handshake", "sta{sv}", body))

    def finish(self) -> None: ...


# ---------------------------------------------------------------- the subscriber


class _Received(NamedTuple):
    path: str
    missed: int
    delay: float  # in ms


class _Subscriber:
    """A process that only receives."""

    def __init__(self, address: str) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would hold what we close
        self._orders, orders = spawn.Pipe()
        self._process = spawn.Process(target=_receive, args=(address, orders))
        self._process.start()
        orders.close()
        assert self._orders.recv() == "subscribed"

    def time(self, sources: list[_Tunnel] | list[_Bare], pause: float) -> list[float]:
        """Return the delays of one signal per sender; all start at once after the pause."""
        self._orders.send(len(sources))
        time.sleep(pause)  # by then it waits, too
        for source in sources:
            source.start()
        received: list[_Received] = self._orders.recv()
        for source in sources:
            source.finish()
        assert {each.path for each in received} == {source.path for source in sources}
        assert not any(each.missed for each in received), "held back"
        return [each.delay for each in received]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.join()


def _receive(address: str, orders: Connection) -> None:
    """Run the subscriber. An order is a number of signals to wait for."""
    with Client(address) as client, contextlib.suppress(EOFError):
        client.subscribe(interface=TUNNEL, member="Handshake")
        orders.send("subscribed")
        while True:
            orders.send([_next(client) for _ in range(orders.recv())])


def _next(client: Client) -> _Received:
    message = client.next_signal("Handshake")
    now = time.time_ns()
    _, realtime_usec, details = message.body
    path = message.header.fields[HeaderFields.path]
    return _Received(path, details["missed"][1], now / 1e6 - realtime_usec / 1e3)
