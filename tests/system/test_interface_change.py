"""A running interface gets other settings: the agent's part, in real namespaces."""

import asyncio
import errno
import itertools
import os
import select
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.namespaces import Namespace
from wg4netnsd import agent as agents
from wg4netnsd import errors, interface, netns
from wg4netnsd.agent import Agent, Change, Request, Settings

NAME = "wg0"
MTU = 1420


def of(*cidrs: str, routes: str = "", mtu: int = MTU) -> Settings:
    return Settings(mtu, list(cidrs), routes.split())


class Tunnel:
    """An interface without an engine: the agent makes it and changes it."""

    def __init__(self, agent: Agent, namespace: Namespace, first: Settings) -> None:
        self.agent, self.namespace, self.settings = agent, namespace, first
        self.tun = asyncio.run(self._create(first))

    async def _create(self, first: Settings) -> int:
        inside = netns.identify(self.namespace.open())
        try:
            async with netns.provision(self.agent, inside, Request(NAME, first)) as provisioning:
                tun, watched = await provisioning.tun()
                os.close(watched.fd)
                await provisioning.configured()
                return tun
        finally:
            inside.close()

    def change(self, new: Settings) -> None:
        asyncio.run(self._change(new))
        self.settings = new

    async def _change(self, new: Settings) -> None:
        inside = netns.identify(self.namespace.open())
        try:
            await netns.change(self.agent, inside, Change(NAME, self.settings, new))
        finally:
            inside.close()

    def refused(self, new: Settings) -> str:
        """The error's text of a change that must fail and leave all as it was."""
        before = self.state()
        with pytest.raises(errors.TunFailed) as refusal:
            self.change(new)
        assert self.state() == before
        return str(refusal.value)

    def addresses(self) -> list[str]:
        """In the kernel's order, by family."""
        (shown,) = self.namespace.ip("address", "show", "dev", NAME)
        return [f"{each['local']}/{each['prefixlen']}" for each in shown["addr_info"]]

    def routes(self, details: bool = False) -> set[Any]:
        """Those of the main table, as (destination, who made it) or with all that is told."""
        shown = [
            {**each, "dst": _network(each["dst"], family)}
            for family in ("-4", "-6")
            for each in self.namespace.ip(family, "route", "show", "dev", NAME, "table", "main")
        ]
        if details:
            return {repr(sorted(each.items())) for each in shown}
        return {(each["dst"], each.get("protocol", "boot")) for each in shown}

    def mtu(self) -> int:
        return int(self.namespace.links()[NAME]["mtu"])

    def state(self) -> tuple[int, list[str], set[Any]]:
        return self.mtu(), self.addresses(), self.routes(details=True)

    def shape(self) -> tuple[int, set[str], set[Any]]:
        """The state without what depends on the order in which the addresses came."""
        return self.mtu(), set(self.addresses()), self.routes()

    def close(self) -> None:
        os.close(self.tun)


def run(inside: Namespace, *commands: str) -> None:
    """As the namespace's owner."""
    for command in commands:
        inside.check(*command.split())


def _network(shown: str, family: str) -> str:
    if shown == "default":
        return "0.0.0.0/0" if family == "-4" else "::/0"
    return str(ip_network(shown))


@pytest.fixture
def tunnel(agent: Agent, inside: Namespace) -> Iterator[Callable[..., Tunnel]]:
    made: list[Tunnel] = []

    def make(first: Settings) -> Tunnel:
        made.append(Tunnel(agent, inside, first))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[[Settings], Tunnel]


@pytest.fixture
def changed_as_created(tunnel: Make, agent: Agent, namespace: Any) -> Callable[..., Tunnel]:
    """Changes through the settings given; each must look as if it had been made so."""

    def check(*stations: Settings) -> Tunnel:
        subject = tunnel(stations[0])
        for station in stations[1:]:
            subject.change(station)
            fresh = Tunnel(agent, namespace(), station)
            assert subject.shape() == fresh.shape()
            fresh.close()
        return subject

    return check


# ---------------------------------------------------------------- what is asked for comes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (of("10.0.0.1/24"), of("10.0.0.1/24", "10.1.0.1/24")),
        (of("10.0.0.1/24", "fd00::1/64"), of("10.0.0.2/24", "fd00::2/64")),
        (of("10.0.0.1/24"), of("fd00::1/64")),
        (
            of("10.0.0.1/32", "fd00::1/128", routes="10.0.0.0/24 fd00::/64"),
            of("10.0.0.1/32", "fd00::1/128", routes="10.9.0.0/16 fd09::/64 0.0.0.0/0 ::/0"),
        ),
        (of("10.0.0.1/24", mtu=1420), of("10.0.0.1/24", mtu=9000)),
    ],
    ids=["one more", "others", "another family", "routes", "MTU"],
)
def test_there_and_back(changed_as_created: Any, old: Settings, new: Settings) -> None:
    changed_as_created(old, new, old)


def test_the_same_again_changes_nothing(tunnel: Make) -> None:
    subject = tunnel(of("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", routes="0.0.0.0/0 ::/0"))
    before = subject.state()
    for _ in range(2):
        subject.change(subject.settings)
        assert subject.state() == before


def test_a_change_by_repetition_changes_nothing_more(tunnel: Make) -> None:
    old, new = of("10.0.0.1/24"), of("10.0.0.2/24", "fd00::1/64", routes="0.0.0.0/0")
    subject = tunnel(old)
    subject.change(new)
    before = subject.state()
    subject.settings = old
    subject.change(new)
    assert subject.state() == before


def test_hundreds_of_routes(changed_as_created: Any) -> None:
    many = " ".join(f"10.{n}.0.0/16" for n in range(200))
    more = " ".join(f"10.{n}.0.0/16" for n in range(100, 250))
    changed_as_created(of("192.0.2.1/32", routes=many), of("192.0.2.2/32", routes=more))


# ---------------------------------------------------------------- the kernel's side effects


@pytest.mark.parametrize("promote", ["0", "1"])
def test_a_secondary_outlives_its_primary(tunnel: Make, inside: Namespace, promote: str) -> None:
    subject = tunnel(of("10.0.0.1/24", "10.0.0.2/24", routes="0.0.0.0/0"))
    inside.check("ip", "address", "add", "10.0.0.50/24", "dev", NAME)  # the owner's
    knob = f"/proc/sys/net/ipv4/conf/{NAME}/promote_secondaries"
    inside.check("sh", "-c", f"echo {promote} >{knob}")
    subject.change(of("10.0.0.2/24", routes="0.0.0.0/0"))
    assert subject.addresses() == ["10.0.0.2/24", "10.0.0.50/24"]
    assert subject.routes() == {("10.0.0.0/24", "kernel"), ("0.0.0.0/0", "static")}


def test_the_last_ipv4_address_takes_no_route_along(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/32", routes="0.0.0.0/0"))
    run(inside, "ip route add 172.16.0.0/12 dev wg0 metric 7")
    run(inside, "ip route add 172.16.0.0/12 dev wg0 table 77")
    subject.change(of("fd00::1/64", routes="0.0.0.0/0"))
    assert subject.routes() == {
        ("0.0.0.0/0", "static"), ("172.16.0.0/12", "boot"), ("fd00::/64", "kernel"),
    }  # fmt: skip
    assert len(inside.ip("route", "show", "table", "77")) == 1


@pytest.mark.parametrize(
    ("connected", "explicit"),
    [
        (of("10.0.0.1/24"), of("10.0.0.1/32", routes="10.0.0.0/24")),
        (of("fd00::1/64"), of("fd00::1/128", routes="fd00::/64")),
        (of("fd00::2/64"), of("fd00::1/128", routes="fd00::/64")),
    ],
)
def test_a_network_is_connected_or_routed(
    changed_as_created: Any, connected: Settings, explicit: Settings
) -> None:
    changed_as_created(connected, explicit, connected)


def test_an_mtu_below_ipv6_and_back(changed_as_created: Any, inside: Namespace) -> None:
    both = of("10.0.0.1/24", "fd00::1/64", routes="0.0.0.0/0 ::/0")
    small = of("10.0.0.1/24", routes="0.0.0.0/0", mtu=1000)
    subject = changed_as_created(both, small, both, small)
    assert subject.addresses() == ["10.0.0.1/24"]
    subject.change(both)
    assert subject.addresses() == ["10.0.0.1/24", "fd00::1/64"]  # and no link-local one


def test_the_first_of_each_family_is_the_preferred_source(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.8.0.1/32", "fd08::1/128"))
    for number in (1, 2):
        new = [f"10.{number}.0.{n}/24" for n in (1, 2)] + [f"fd0{number}::{n}/64" for n in (1, 2)]
        subject.change(of(*new, routes="0.0.0.0/0 ::/0"))
        for target, source in (("192.0.2.1", new[0]), ("2001:db8::1", new[2])):
            (route,) = inside.ip("route", "get", target)
            assert route["prefsrc"] == source.partition("/")[0]


# ---------------------------------------------------------------- what stays, and whose it is


def test_what_stays_is_never_away(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(
        of("10.0.0.1/24", "10.0.0.2/24", "10.5.0.1/16", "fd00::1/64", "fd00::2/64",
           routes="0.0.0.0/0 ::/0 10.9.0.0/16")
    )  # fmt: skip
    monitor = inside.popen("ip", "monitor", "address", "route", stdout=-1)
    assert monitor.stdout is not None
    told = iter(monitor.stdout.readline, "")

    def until(marker: str) -> list[str]:
        return list(itertools.takewhile(lambda line: marker not in line, told))

    # It listens once it tells of something.
    ready = "198.51.100.1"
    while not _readable(monitor.stdout):
        inside.run("ip", "route", "replace", ready, "dev", NAME)
    subject.change(
        of("10.0.0.2/24", "10.5.0.1/16", "10.7.0.1/24", "fd00::2/64", "fd07::1/64",
           routes="0.0.0.0/0 ::/0 10.8.0.0/16", mtu=1300)
    )  # fmt: skip
    inside.check("ip", "route", "add", "198.51.100.2", "dev", NAME)
    deleted = [line for line in until("198.51.100.2") if line.startswith("Deleted")]
    monitor.terminate()
    monitor.wait(10)
    monitor.stdout.close()
    text = "".join(deleted)
    assert "10.0.0.1/24" in text
    assert "10.9.0.0/16" in text
    for stays in ("inet 10.0.0.2", "inet 10.5.0.1", "inet6 fd00::2", "default", "fd00::/64"):
        assert stays not in text


def _readable(stream: Any) -> bool:
    return bool(select.select([stream], [], [], 0.1)[0])


def test_a_stream_over_what_stays_goes_on(tunnel: Make, inside: Namespace) -> None:
    """The kernel answers for both ends; what counts is that neither end is torn down."""
    subject = tunnel(of("10.0.0.1/24", "10.0.0.2/24", "fd00::2/64"))
    command = ["python3", "-c", _ECHO]
    stream = inside.popen(*command, stdin=-1, stdout=-1)
    assert stream.stdin is not None
    assert stream.stdout is not None
    assert stream.stdout.readline() == "connected\n"
    subject.change(of("10.0.0.2/24", "fd00::2/64", "10.3.0.1/24", routes="0.0.0.0/0"))
    stream.stdin.close()
    assert stream.stdout.readline() == "alive\n"
    stream.stdout.close()
    assert stream.wait(10) == 0


_ECHO = """
import socket, sys
def pair(address):
    server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else 2)
    client = socket.create_connection(server.getsockname()[:2], source_address=(address, 0))
    return client, server.accept()[0]
pairs = [pair("10.0.0.2"), pair("fd00::2")]
print("connected", flush=True)
sys.stdin.read()
for client, server in pairs:
    client.sendall(b"x")
    assert server.recv(1) == b"x"
print("alive", flush=True)
"""


def test_what_the_owner_added_stays(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/24", "fd00::1/64", routes="10.9.0.0/16"))
    run(
        inside,
        "ip address add 10.44.0.1/24 dev wg0",
        "ip address add fd44::1/64 dev wg0",
        "ip address add 10.0.0.7/24 dev wg0",
        "ip route add 10.55.0.0/16 dev wg0",
        "ip route add 10.56.0.0/16 dev wg0 src 10.44.0.1 metric 5",
        "ip route add fd55::/64 dev wg0 metric 9",
        "ip route add 10.9.0.0/16 dev wg0 metric 100 proto static",
    )
    subject.change(of("10.2.0.1/24"))
    assert set(subject.addresses()) == {
        "10.2.0.1/24", "10.44.0.1/24", "10.0.0.7/24", "fd44::1/64",
    }  # fmt: skip
    assert subject.routes() >= {
        ("10.55.0.0/16", "boot"), ("10.56.0.0/16", "boot"), ("fd55::/64", "boot"),
        ("10.9.0.0/16", "static"),
    }  # fmt: skip


def test_what_the_owner_has_taken_away_needs_no_removal(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/24", "10.1.0.1/24", "fd00::1/64", routes="10.9.0.0/16 fd09::/64"))
    run(
        inside,
        "ip address del 10.0.0.1/24 dev wg0",
        "ip address del fd00::1/64 dev wg0",
        "ip route del 10.9.0.0/16",
        "ip route del fd09::/64",
    )
    subject.change(of("10.1.0.1/24"))
    assert subject.addresses() == ["10.1.0.1/24"]
    assert subject.routes() == {("10.1.0.0/24", "kernel")}


def test_what_the_owner_has_added_before_counts(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/24"))
    run(
        inside,
        "ip address add 10.1.0.1/24 dev wg0",
        "ip address add fd00::1/64 dev wg0",
        "ip route add 10.9.0.0/16 dev wg0",
        "ip route add fd09::/64 dev wg0",
    )
    subject.change(of("10.0.0.1/24", "10.1.0.1/24", "fd00::1/64", routes="10.9.0.0/16 fd09::/64"))
    assert set(subject.addresses()) == {"10.0.0.1/24", "10.1.0.1/24", "fd00::1/64"}


# ---------------------------------------------------------------- all or nothing


@pytest.fixture
def other(inside: Namespace) -> str:
    """Another interface of the namespace."""
    run(inside, "ip link add other type veth peer other-peer", "ip link set other up")
    return "other"


@pytest.mark.parametrize(
    ("network", "new"),
    [
        ("10.99.0.0/16", of("10.2.0.1/24", "fd02::1/64", routes="10.8.0.0/16 10.99.0.0/16")),
        ("fd99::/64", of("10.2.0.1/24", "fd02::1/64", routes="fd08::/64 fd99::/64", mtu=1300)),
        ("10.99.0.0/16", of("10.0.0.2/24", routes="10.99.0.0/16", mtu=1000)),
        ("10.99.0.0/16", of("10.0.0.7/24", routes="10.99.0.0/16", mtu=9000)),
    ],
)
def test_a_route_of_another_interface(
    tunnel: Make, inside: Namespace, other: str, network: str, new: Settings
) -> None:
    subject = tunnel(
        of("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", routes="0.0.0.0/0 ::/0 10.9.0.0/16")
    )
    inside.check("ip", "route", "add", network, "dev", other)
    run(inside, "ip address add 10.0.0.7/24 dev wg0")
    run(inside, "ip address add fd77::1/64 dev wg0")
    run(inside, "ip route add 10.8.0.0/16 dev wg0 proto static scope link")
    run(inside, "ip route del 10.9.0.0/16")
    assert subject.refused(new) == f"TunFailed: route {network} dev wg0: File exists"


def test_a_way_back_over_ipv6s_mtu(tunnel: Make, inside: Namespace, other: str) -> None:
    subject = tunnel(of("10.0.0.1/24", routes="0.0.0.0/0", mtu=1000))
    inside.check("ip", "route", "add", "10.99.0.0/16", "dev", other)
    new = of("10.0.0.2/24", "fd00::1/64", routes="::/0 10.99.0.0/16")
    assert "route 10.99.0.0/16 dev wg0: File exists" in subject.refused(new)


def test_an_mtu_that_the_kernel_refuses(tunnel: Make) -> None:
    subject = tunnel(of("10.0.0.1/24", "fd00::1/64", routes="::/0"))
    for mtu in (10, 70000):
        assert subject.refused(of("10.0.0.2/24", mtu=mtu)).startswith(
            f"TunFailed: MTU {mtu} on wg0"
        )
    for new in (of("fd00::1/64", mtu=1000), of("10.0.0.1/24", routes="::/0", mtu=1279)):
        assert "too small for IPv6" in subject.refused(new)


def test_the_way_back_may_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there can be there again, as far as we know the kernel; so it is no kernel here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory", "address 10.0.0.1/24 on wg0")

    monkeypatch.setattr(interface, "_move", refuse)
    nothing: Any = interface._State(MTU, [], [])
    first = OSError(errno.EEXIST, "File exists", "route 10.9.0.0/16 dev wg0")
    arguments: Any = (None, None, nothing, nothing, interface._Snapshot([], []), first)
    with pytest.raises(interface.Refused) as both:
        interface._move_back(*arguments)
    assert str(both.value) == (
        "route 10.9.0.0/16 dev wg0: File exists; "
        "and on the way back: address 10.0.0.1/24 on wg0: Cannot allocate memory"
    )


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ip link set wg0 name mine", "the namespace has no 'wg0' any more"),
        ("ip link del wg0", "the namespace has no 'wg0' any more"),
        ("ip link set wg0 down", "the interface 'wg0' is down"),
    ],
)
def test_an_interface_that_is_not_there(
    tunnel: Make, inside: Namespace, command: str, expected: str
) -> None:
    subject = tunnel(of("10.0.0.1/24"))
    run(inside, command)
    with pytest.raises(errors.TunFailed, match=expected):
        subject.change(of("10.0.0.2/24"))
    if "name" in command:
        run(inside, "ip link add wg0 type veth peer wg1")
        with pytest.raises(errors.TunFailed, match="'wg0' is another interface now"):
            subject.change(of("10.0.0.2/24"))


def test_an_agent_that_is_gone(inside: Namespace) -> None:
    mortal = agents.fork()
    subject = Tunnel(mortal, inside, of("10.0.0.1/24"))
    mortal.control.shutdown(socket.SHUT_RDWR)
    mortal.end()
    with pytest.raises(errors.TunFailed, match="the agent can't be reached"):
        subject.change(of("10.0.0.2/24"))
    subject.close()


def test_a_cancelled_change_is_over(tunnel: Make, inside: Namespace) -> None:
    """Made or not made, but nothing comes later."""
    subject = tunnel(of("10.0.0.1/24"))

    async def cancel_at_once(new: Settings) -> None:
        task = asyncio.create_task(subject._change(new))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_at_once(of("10.0.0.2/24")))
    assert inside.processes() == {inside.pid}
    assert subject.addresses() in (["10.0.0.1/24"], ["10.0.0.2/24"])


# ---------------------------------------------------------------- from anything to anything

ADDRESSES = [
    "10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "10.0.0.1/32", "10.0.0.9/16", "10.0.1.1/24",
    "fd00::1/64", "fd00::2/64", "fd00::1/128", "fd00::2/128", "fd01::1/64",
]  # fmt: skip
NETWORKS = [
    "0.0.0.0/0", "10.0.0.0/24", "10.0.0.0/16", "10.0.1.0/24", "10.0.0.2/32", "192.0.2.0/24",
    "::/0", "fd00::/64", "fd01::/64", "fd00::2/128", "2001:db8::/32",
]  # fmt: skip


def consistent(mtu: int, addresses: list[str], networks: list[str]) -> Settings:
    """What a Config would ask for: no IPv6 below 1280, no route that an address implies."""
    connected = {str(ip_interface(address).network) for address in addresses}
    routes = [network for network in networks if network not in connected]
    if mtu < 1280:
        addresses = [address for address in addresses if ":" not in address]
        routes = [network for network in routes if ":" not in network]
    return Settings(mtu, addresses, routes)


some_settings = st.builds(
    consistent,
    st.sampled_from([1420, 1420, 1420, 1280, 1000]),
    st.lists(
        st.sampled_from(ADDRESSES),
        max_size=6,
        # IPv6 takes an address once, whatever its prefix length.
        unique_by=lambda cidr: cidr.partition("/")[0] if ":" in cidr else cidr,
    ),
    st.lists(st.sampled_from(NETWORKS), max_size=6, unique=True),
)


@given(stations=st.lists(some_settings, min_size=2, max_size=4))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(stations=[of("fd00::1/64"), of("fd00::1/128", routes="fd00::/64"), of("fd00::1/64")])
def test_changed_is_as_created(agent: Agent, inside: Namespace, stations: list[Settings]) -> None:
    expected = []
    for station in stations:
        fresh = Tunnel(agent, inside, station)
        expected.append(fresh.shape())
        fresh.close()
    subject = Tunnel(agent, inside, stations[0])
    try:
        for station, shape in zip(stations[1:], expected[1:], strict=True):
            subject.change(station)
            assert subject.shape() == shape
    finally:
        subject.close()
