"""A running interface gets other settings: the result is as if it was created with them."""

from ipaddress import ip_interface
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.interface_changes import Interface, Make, of, run
from support.interfaces import NAME
from support.namespaces import Namespace
from wg4netnsd.agent.client import Agent
from wg4netnsd.agent.protocol import InterfaceSettings

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
def test_there_and_back(
    changed_as_created: Any, old: InterfaceSettings, new: InterfaceSettings
) -> None:
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
    changed_as_created: Any, connected: InterfaceSettings, explicit: InterfaceSettings
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


# ---------------------------------------------------------------- from anything to anything

ADDRESSES = [
    "10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "10.0.0.1/32", "10.0.0.9/16", "10.0.1.1/24",
    "fd00::1/64", "fd00::2/64", "fd00::1/128", "fd00::2/128", "fd01::1/64",
]  # fmt: skip
NETWORKS = [
    "0.0.0.0/0", "10.0.0.0/24", "10.0.0.0/16", "10.0.1.0/24", "10.0.0.2/32", "192.0.2.0/24",
    "::/0", "fd00::/64", "fd01::/64", "fd00::2/128", "2001:db8::/32",
]  # fmt: skip


def consistent(mtu: int, addresses: list[str], networks: list[str]) -> InterfaceSettings:
    """Settings as a Config asks for them: no IPv6 below 1280, no route that an address implies."""
    connected = {str(ip_interface(address).network) for address in addresses}
    routes = [network for network in networks if network not in connected]
    if mtu < 1280:
        addresses = [address for address in addresses if ":" not in address]
        routes = [network for network in routes if ":" not in network]
    return InterfaceSettings(mtu, addresses, routes)


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
def test_changed_is_as_created(
    agent: Agent, inside: Namespace, stations: list[InterfaceSettings]
) -> None:
    expected = []
    for station in stations:
        fresh = Interface(agent, inside, station)
        expected.append(fresh.shape())
        fresh.close()
    subject = Interface(agent, inside, stations[0])
    try:
        for station, shape in zip(stations[1:], expected[1:], strict=True):
            subject.change(station)
            assert subject.shape() == shape
    finally:
        subject.close()
