"""How many calls per second the daemon answers, from one client, one after the other; and how long
OpenSocket takes.

In turns with them, a call that the bus itself answers: the share of bus and client.
"""

import argparse
import base64
import time
from collections.abc import Callable

from bench.create import CONF
from bench.record import Table
from bench.tunnels import daemon_with
from bench.turns import in_turns
from support.daemon import Daemon
from support.sockets import open_socket

PEERS = 250
CALLS_TIME = 0.1
"""Seconds per kind of call and round."""
FLOOR = "floor: GetId, of the bus itself"
SOCKETS = 100
"""Calls of OpenSocket per round, each timed."""


def run(arguments: argparse.Namespace) -> list[Table]:
    count = arguments.tunnels
    with (
        daemon_with({"one": CONF}, lifetime="persistent") as (small, _),
        daemon_with(dict.fromkeys(map("t{}".format, range(count)), CONF)) as (large, _),
        daemon_with({"many": _conf_of_many()}, lifetime="persistent") as (peered, _),
    ):
        ways = {
            "Get, 1 tunnel": _get(small),
            f"Get, {count} tunnels": _get(large),
            "GetPeers, 1 peer": _get_peers(small),
            f"GetPeers, {PEERS} peers": _get_peers(peered),
            "Describe, 1 tunnel": _describe(small),
            f"Describe, {count} tunnels": _describe(large),
            FLOOR: _rate(lambda: small.client.bus("GetId")),
        }
        rates = in_turns(ways, arguments.rounds)
    return [Table("Calls, one after the other", "calls/s", rates, FLOOR), _sockets(arguments)]


def _sockets(arguments: argparse.Namespace) -> Table:
    with (
        daemon_with({"one": CONF}, lifetime="persistent") as (pinning, _),
        daemon_with({"one": CONF}) as (other, _),
    ):
        ways = {
            "persistent": _times(lambda: _open_socket(pinning, _first(pinning))),
            "namespace": _times(lambda: _open_socket(other, _first(other))),
            FLOOR: _times(lambda: lambda: pinning.client.bus("GetId")),
        }
        times = in_turns(ways, arguments.rounds)
    rows = {name: [value for one in rounds for value in one] for name, rounds in times.items()}
    return Table("OpenSocket, by the tunnel's lifetime", "ms", rows, FLOOR)


def _open_socket(daemon: Daemon, path: str) -> Callable[[], object]:
    return lambda: open_socket(daemon.client, path).close()


def _times(prepare: Callable[[], Callable[[], object]]) -> Callable[[], list[float]]:
    """Return a function that times SOCKETS calls, in ms each."""

    def measure() -> list[float]:
        call = prepare()
        call()
        times = []
        for _ in range(SOCKETS):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times

    return measure


def _conf_of_many() -> str:
    keys = (base64.b64encode(number.to_bytes(32)).decode() for number in range(1, PEERS))
    peers = (
        f"[Peer]\nPublicKey = {key}\nAllowedIPs = 10.8.{number}.0/24\n"
        for number, key in enumerate(keys, 1)
    )
    return CONF + "".join(peers)


def _get(daemon: Daemon) -> Callable[[], float]:
    path = _first(daemon)
    return _rate(lambda: daemon.client.get(path, "State"))


def _get_peers(daemon: Daemon) -> Callable[[], float]:
    path = _first(daemon)
    return _rate(lambda: daemon.client.peers(path))


def _describe(daemon: Daemon) -> Callable[[], float]:
    return _rate(lambda: daemon.client.manager("Describe"))


def _first(daemon: Daemon) -> str:
    return daemon.client.tunnels()[0][1]


def _rate(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that measures this call once."""

    def measure() -> float:
        call()
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < CALLS_TIME:
            call()
            count += 1
        return count / passed

    return measure
