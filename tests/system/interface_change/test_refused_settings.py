"""A refused change leaves a running interface as it was."""

import asyncio
import errno
import socket
from typing import Any

import pytest

from support.interface_changes import MTU, Interface, Make, of, run
from support.namespaces import Namespace
from support.processes import only_child, stopped
from wg4netnsd import errors
from wg4netnsd.agent import interface
from wg4netnsd.agent import server as agents
from wg4netnsd.agent.client import Agent
from wg4netnsd.agent.protocol import InterfaceSettings


@pytest.fixture
def other(inside: Namespace) -> str:
    """Another interface in the namespace."""
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
    tunnel: Make, inside: Namespace, other: str, network: str, new: InterfaceSettings
) -> None:
    subject = tunnel(
        of("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", routes="0.0.0.0/0 ::/0 10.9.0.0/16")
    )
    inside.check("ip", "route", "add", network, "dev", other)
    run(inside, "ip address add 10.0.0.7/24 dev wg0")
    run(inside, "ip address add fd77::1/64 dev wg0")
    run(inside, "ip route add 10.8.0.0/16 dev wg0 proto static scope link")
    run(inside, "ip route del 10.9.0.0/16")
    assert subject.refused(new) == (
        f"TunFailed: route {network} dev wg0: File exists: the namespace has one dev {other}: "
        "delete that, or write 'Table = off' and set routes yourself"
    )


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
    """As far as we know, the kernel takes back what it had; so this is not the kernel."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory", "address 10.0.0.1/24 on wg0")

    monkeypatch.setattr(interface, "_move", refuse)
    nothing: Any = interface._Settings(MTU, [], [])
    first = OSError(errno.EEXIST, "File exists", "route 10.9.0.0/16 dev wg0")
    arguments: Any = (None, None, nothing, nothing, interface._Snapshot([], []), first)
    with pytest.raises(interface.InterfaceError) as both:
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
    mortal = Agent(*agents.fork())
    subject = Interface(mortal, inside, of("10.0.0.1/24"))
    mortal._control.shutdown(socket.SHUT_RDWR)
    mortal.end()
    with pytest.raises(errors.TunFailed, match="the agent can't be reached"):
        subject.change(of("10.0.0.2/24"))
    subject.close()


def test_a_cancelled_change_is_over(tunnel: Make, inside: Namespace, agent: Agent) -> None:
    """Cancelling waits for the change's end: it is made or not, but nothing happens later."""
    subject = tunnel(of("10.0.0.1/24"))
    child = only_child(agent.pid)

    async def cancel_at_once(new: InterfaceSettings) -> None:
        task = asyncio.create_task(subject._change(new))
        with stopped(child):
            await asyncio.sleep(0)
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_at_once(of("10.0.0.2/24")))
    assert inside.processes() == {inside.pid}
    assert subject.addresses() in (["10.0.0.1/24"], ["10.0.0.2/24"])
