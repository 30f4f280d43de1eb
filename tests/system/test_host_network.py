"""Changes of the host's network: real ones in the test's own namespace, and the logic alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_NEWADDR, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from support.namespaces import MakeNamespace, Namespace
from support.processes import wait_for
from wg4netnsd.aio.coalescer import PAUSE, Coalescer
from wg4netnsd.host.network import (
    ADDRESSES_CHANGED,
    BOTH_CHANGED,
    IFA_F_TENTATIVE,
    NO_NETWORK,
    ROUTE_CHANGED,
    DefaultRoute,
    HostAddress,
    HostState,
    NextHop,
    contradicts,
    default_route,
    difference,
    host_address,
    host_state,
)

# Prints each reason that HostNetwork gives, in a line; ends with its standard input.
WATCH = """
import asyncio, sys
from wg4netnsd.host.network import HostNetwork

async def watch():
    host = HostNetwork(lambda reason: print(reason, flush=True), lambda: None)
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await ended.wait()
    host.close()
    host.close()

asyncio.run(watch())
"""


class Watcher:
    """A process that watches the namespace it is in."""

    def __init__(self, inside: Namespace) -> None:
        command = inside.command(sys.executable, "-W", "error", "-c", WATCH)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.next() == "ready"

    def next(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> list[str]:
        """End the process; return the lines that nobody has read."""
        rest, _ = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        return rest.splitlines()


@pytest.fixture
def host(namespace: MakeNamespace) -> Namespace:
    """A namespace with two ends of a cable: up0, which has 192.0.2.2 and 2001:db8::2, and far0."""
    inside = namespace()
    for command in (
        "link set lo up",
        "link add up0 type veth peer name far0",
        "link set far0 up",
        "link set up0 up",
        "address add 192.0.2.2/24 dev up0",
        "address add 2001:db8::2/64 dev up0 nodad",
    ):
        ip(inside, command)
    return inside


@pytest.fixture
def watcher(host: Namespace) -> Iterator[Watcher]:
    """A watcher; the test has to read all of its lines."""
    started = Watcher(host)
    yield started
    assert started.end() == []


def told_at_once(inside: Namespace, *changes: str) -> list[str]:
    """Make the changes, wait for a watcher's first line, end it, and return all of its lines."""
    watcher = Watcher(inside)
    for change in changes:
        ip(inside, change)
    return [watcher.next(), *watcher.end()]


def ip(inside: Namespace, command: str) -> None:
    inside.check("ip", *command.split())


# ---------------------------------------------------------------- what is told


def test_an_address_comes_and_goes(host: Namespace) -> None:
    for change in (
        "address add 198.51.100.7/24 dev up0",
        "address del 198.51.100.7/24 dev up0",
        "address add 2001:db8:1::7/64 dev up0 nodad",
        "address del 2001:db8:1::7/64 dev up0",
    ):
        assert told_at_once(host, change) == [ADDRESSES_CHANGED], change


@pytest.mark.parametrize(
    ("first", "second"), [("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9")]
)
def test_the_default_route_comes_changes_and_goes(host: Namespace, first: str, second: str) -> None:
    for change in (
        f"route add default via {first} metric 100",
        f"route replace default via {second} metric 100",
        f"route add default via {second} metric 50",
        "route del default metric 50",
        f"route replace default metric 100 nexthop via {first} nexthop via {second}",
        "route del default metric 100",
    ):
        family = "-6" if ":" in first else "-4"
        assert told_at_once(host, f"{family} {change}") == [ROUTE_CHANGED], change


def test_a_link_goes_down(host: Namespace) -> None:
    """The kernel sends no notification for the IPv4 route that goes with it."""
    ip(host, "route add default via 192.0.2.1")
    ip(host, "address del 2001:db8::2/64 dev up0")  # whose end would be notified of
    assert told_at_once(host, "link set up0 down") == [ROUTE_CHANGED]


def test_a_link_is_deleted(host: Namespace) -> None:
    ip(host, "route add default via 192.0.2.1")
    watcher = Watcher(host)
    ip(host, "link del up0")
    told = [watcher.next()]
    if told == [ROUTE_CHANGED]:  # the addresses went a moment later
        told.append(watcher.next())
    assert told in ([BOTH_CHANGED], [ROUTE_CHANGED, ADDRESSES_CHANGED])
    assert watcher.end() == []


def test_a_namespace_without_any_interface(namespace: MakeNamespace) -> None:
    inside = namespace()
    changes = "link add up0 type veth peer name far0", "address add 192.0.2.2/24 dev up0"
    assert told_at_once(inside, *changes) == [ADDRESSES_CHANGED]


def test_an_ipv6_address_counts_once_it_is_known_to_be_unique(
    host: Namespace, watcher: Watcher
) -> None:
    ip(host, "address add 2001:db8:2::2/64 dev up0")
    assert watcher.next() == ADDRESSES_CHANGED
    (shown,) = host.ip("address", "show", "dev", "up0", "to", "2001:db8:2::2")
    assert "tentative" not in shown["addr_info"][0]


# ---------------------------------------------------------------- what is not told


@pytest.mark.parametrize(
    "change",
    [
        "address change 192.0.2.2/24 dev up0 valid_lft 1000 preferred_lft 500",
        "address change 192.0.2.2/24 dev up0 valid_lft 1000 preferred_lft 0",
        "address change 2001:db8::2/64 dev up0 valid_lft 1000 preferred_lft 500",
        "address change 2001:db8::2/64 dev up0 valid_lft 1000 preferred_lft 0",
        "address add 169.254.7.7/16 dev up0 scope link",
        "address add fe80::7/64 dev up0 nodad",
        "address add 203.0.113.1/32 dev lo",
        "route add 198.51.100.0/24 via 192.0.2.1",
        "route add default via 192.0.2.1 table 100",
        "route add unreachable default metric 4000000",
        "route add 2001:db8:3::/48 via 2001:db8::1",
        "route replace default via 192.0.2.1 metric 7",
        "link add other0 type veth peer name other1",
        "link set far0 down",
    ],
)
def test_what_changes_nothing(host: Namespace, change: str) -> None:
    """Only the next change is reported. That is of the other kind, to tell the reports apart."""
    ip(host, "route add default via 192.0.2.1 metric 7")
    if change.startswith("address"):
        what_does, told = "route add default via 192.0.2.9 metric 3", ROUTE_CHANGED
    else:
        what_does, told = "address add 198.51.100.7/24 dev up0", ADDRESSES_CHANGED
    assert told_at_once(host, change, what_does) == [told]


# ---------------------------------------------------------------- how often


def test_a_burst_is_told_at_once_and_once_more(host: Namespace, watcher: Watcher) -> None:
    commands = [f"address add 198.51.100.{n}/32 dev up0" for n in range(1, 200)]
    batch = "\n".join([*commands, "route add default via 192.0.2.1"])
    host.check("ip", "-batch", "-", input=batch)
    assert watcher.next() == ADDRESSES_CHANGED
    assert watcher.next() == BOTH_CHANGED


def test_what_an_overrun_has_lost_is_found(host: Namespace, watcher: Watcher) -> None:
    """The socket is full of changes that do not count, and the one that counts is lost."""
    (pid,) = host.processes() - {host.pid}
    os.kill(pid, signal.SIGSTOP)
    try:
        routes = [f"10.{n // 250}.{n % 250}.0/24 via 192.0.2.1" for n in range(1000)]
        host.check("ip", "-batch", "-", input="\n".join(f"route add {each}" for each in routes))
        wait_for(lambda: drops(pid), "the socket has overrun")
        ip(host, "address add 198.51.100.7/24 dev up0")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert watcher.next() == ADDRESSES_CHANGED


def drops(pid: int) -> int:
    """Return how many notifications the process's socket had no room for."""
    lines = Path(f"/proc/{pid}/net/netlink").read_text().splitlines()
    columns = lines[0].split()
    sockets = [dict(zip(columns, line.split(), strict=True)) for line in lines[1:]]
    (found,) = [each for each in sockets if each["Pid"] == str(pid) and each["Eth"] == "0"]
    return int(found["Drops"])


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> "Timer":
        self.timers.append((self.now + delay, callback))
        return Timer(self, self.timers[-1])

    def go_by(self, seconds: float) -> None:
        self.now += seconds
        for timer in [each for each in self.timers if each[0] <= self.now]:
            self.timers.remove(timer)
            timer[1]()


class Timer:
    def __init__(self, clock: Clock, entry: tuple[float, Callable[[], None]]) -> None:
        self._clock, self._entry = clock, entry

    def cancel(self) -> None:
        self._clock.timers.remove(self._entry)


def test_the_coalescer() -> None:
    clock = Clock()
    done: list[float] = []
    coalescer = Coalescer(lambda: done.append(clock.now), clock.call_later)
    assert clock.timers == []
    coalescer.ask()
    assert done == [0]
    for _ in range(3):
        clock.go_by(PAUSE / 4)
        coalescer.ask()
    assert done == [0]
    clock.go_by(PAUSE / 4)
    assert done == [0, PAUSE]
    clock.go_by(PAUSE)
    assert done == [0, PAUSE]
    assert clock.timers == []  # nothing happens: nobody wakes
    clock.go_by(PAUSE)
    coalescer.ask()
    assert done == [0, PAUSE, 3 * PAUSE]
    coalescer.close()
    assert clock.timers == []


# ---------------------------------------------------------------- the logic alone


def encoded(message: Any, kind: int, **fields: Any) -> bytes:
    for field, value in fields.items():
        message[field] = value
    message["header"] = {"type": kind, "flags": 0, "sequence_number": 0, "pid": 0}
    message.encode()
    return bytes(message.data)


def address_message(kind: int = RTM_NEWADDR, flags: int = 0, **fields: Any) -> bytes:
    attrs = [("IFA_ADDRESS", "192.0.2.2"), ("IFA_LOCAL", "192.0.2.2")]
    defaults = {"family": 2, "index": 3, "prefixlen": 24, "scope": 0, "attrs": attrs}
    return encoded(ifaddrmsg(), kind, flags=flags, **defaults | fields)


def route_message(attrs: list[tuple[str, Any]], **fields: Any) -> bytes:
    defaults = {"family": 2, "table": 254, "type": 1, "attrs": [("RTA_TABLE", 254), *attrs]}
    return encoded(rtmsg(), RTM_NEWROUTE, **defaults | fields)


ADDRESS = HostAddress(3, "192.0.2.2", 24)
ROUTE = DefaultRoute(2, 100, (NextHop(3, "192.0.2.1"),))
ROUTE_ATTRS = [("RTA_GATEWAY", "192.0.2.1"), ("RTA_OIF", 3), ("RTA_PRIORITY", 100)]


def test_a_place_is_made_of_addresses_and_default_routes() -> None:
    addresses = [address_message(), address_message(scope=254), address_message(index=1)]
    routes = [route_message(ROUTE_ATTRS), route_message(ROUTE_ATTRS, dst_len=8)]
    assert host_state(addresses, routes, NO_NETWORK) == HostState(
        frozenset({ADDRESS}), frozenset({ROUTE})
    )
    assert host_state([], [], NO_NETWORK) == NO_NETWORK


def test_the_far_end_of_a_point_to_point_link_is_not_our_address() -> None:
    attrs = [("IFA_ADDRESS", "198.51.100.1"), ("IFA_LOCAL", "192.0.2.2")]
    assert host_address(address_message(attrs=attrs), ()) == ADDRESS


def test_a_tentative_address_counts_if_it_did_before() -> None:
    message = address_message(flags=IFA_F_TENTATIVE)
    assert host_address(message, {ADDRESS}) == ADDRESS
    assert host_address(message, ()) is None
    known = HostState(frozenset({ADDRESS}), frozenset())
    assert not contradicts(message, known)
    assert not contradicts(message, NO_NETWORK)
    removal = address_message(RTM_DELADDR, flags=IFA_F_TENTATIVE)
    assert contradicts(removal, known)
    assert not contradicts(removal, NO_NETWORK)


def test_a_route_with_an_ipv6_gateway() -> None:
    via = ("RTA_VIA", {"family": 10, "addr": "fe80::1"})
    route = default_route(route_message([via, ("RTA_OIF", 3)]))
    assert route is not None
    assert "fe80::1" in route.hops[0].gateway


def test_the_difference_has_a_name() -> None:
    moved = HostState(frozenset({ADDRESS}), frozenset({ROUTE}))
    assert difference(moved, moved) == ""
    assert difference(NO_NETWORK, moved) == BOTH_CHANGED
    assert difference(NO_NETWORK, moved._replace(routes=frozenset())) == ADDRESSES_CHANGED
    assert difference(NO_NETWORK, moved._replace(addresses=frozenset())) == ROUTE_CHANGED
