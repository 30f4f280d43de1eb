"""How many calls per second the daemon answers, from one client, one after the other.

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

PEERS = 250
CALLS_TIME = 0.1
"""Seconds per kind of call and round."""
FLOOR = "floor: GetId, of the bus itself"


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
    return [Table("Calls, one after the other", "calls/s", rates, FLOOR)]


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
