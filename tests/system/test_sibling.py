"""A TUN that keeps its namespace alive, and one from a sibling namespace, which does not."""

import asyncio
import contextlib
import errno
import os
import resource
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.daemon import SOON
from support.interfaces import NAME, SETTINGS, create
from support.namespaces import MakeNamespace, Namespace
from support.processes import children, is_alive, only_child, open_fds, wait_for
from wg4netnsd import errors
from wg4netnsd.agent import server as agents
from wg4netnsd.agent.client import Agent, NewInterface
from wg4netnsd.agent.protocol import ChangeInterface, CreateInterface, InterfaceSettings
from wg4netnsd.kernel import tun
from wg4netnsd.tunnel.netns import Netns

both_ways = pytest.mark.parametrize("pins", [True, False], ids=["in place", "sibling"])


@pytest.fixture
def agent(agent: Agent) -> Iterator[Agent]:
    """An agent. Its requests leave nothing behind except what the test closes."""
    before = open_fds(os.getpid())
    yield agent
    assert open_fds(os.getpid()) == before
    only_child(agent.pid)  # the next request's


def make(
    agent: Agent, inside: Namespace, pins: bool, settings: InterfaceSettings = SETTINGS
) -> NewInterface:
    return asyncio.run(create(agent, inside, pins=pins, settings=settings))


@contextlib.contextmanager
def made(agent: Agent, inside: Namespace, pins: bool) -> Iterator[NewInterface]:
    interface = make(agent, inside, pins)
    try:
        yield interface
    finally:
        interface.close()


def shape(inside: Namespace) -> tuple[Any, ...]:
    """Everything that can be seen of the interface from inside, except its age and index."""
    (link,) = inside.ip("-details", "link", "show", "dev", NAME)
    (addresses,) = inside.ip("address", "show", "dev", NAME)
    routes = [inside.ip(family, "route", "show", "table", "all") for family in ("-4", "-6")]
    return {key: link[key] for key in link if key != "ifindex"}, addresses["addr_info"], routes


def test_it_looks_the_same_from_inside(agent: Agent, namespace: MakeNamespace) -> None:
    shapes = []
    for pins in (True, False):
        inside = namespace()
        with made(agent, inside, pins):
            shapes.append(shape(inside))
    assert shapes[0] == shapes[1]
    link, *_ = shapes[0]
    its = link["linkinfo"]["info_data"]
    # With vnet_hdr, segments of up to 64 KiB reach the engine whole: five times the throughput.
    assert (its["type"], its["pi"], its["vnet_hdr"]) == ("tun", False, True)


@both_ways
@pytest.mark.parametrize("nested", [False, True])
def test_its_end(agent: Agent, namespace: MakeNamespace, pins: bool, nested: bool) -> None:
    inside = namespace(nested=nested)
    was = inside.id
    with made(agent, inside, pins) as interface:
        inside.empty()
        if pins:
            kept = Netns.of_tun(interface.tun_fd)
            assert kept.id == was
            kept.close()
        else:
            wait_for(lambda: tun.is_gone(interface.tun_fd), "the interface ends with its namespace")
            with pytest.raises(errors.TunFailed, match="the interface is gone"):
                Netns.of_tun(interface.tun_fd)
            assert tun.name(interface.tun_fd) == ""
            with pytest.raises(errors.TunFailed, match="the interface is gone"):
                asyncio.run(agent.watch(interface.tun_fd))


@both_ways
def test_it_goes_with_its_tun(agent: Agent, inside: Namespace, pins: bool) -> None:
    make(agent, inside, pins).close()
    wait_for(lambda: set(inside.links()) == {"lo"}, "the interface is gone")


@both_ways
def test_its_index_where_others_are(agent: Agent, inside: Namespace, pins: bool) -> None:
    inside.check("ip", "link", "add", "one", "type", "veth", "peer", "other")
    with made(agent, inside, pins) as interface:
        assert interface.watched.link.name == NAME
        assert interface.watched.link.ifindex == inside.links()[NAME]["ifindex"] > 3


@both_ways
def test_it_can_be_changed_by_its_tun_alone(agent: Agent, inside: Namespace, pins: bool) -> None:
    async def change(tun_fd: int) -> None:
        target = Netns.of_tun(tun_fd)
        try:
            assert target.id == inside.id
            new = InterfaceSettings(1400, ["10.7.0.1/24"], [])
            await agent.change(target.fd, ChangeInterface(NAME, SETTINGS, new))
        finally:
            target.close()

    with made(agent, inside, pins) as interface:
        asyncio.run(change(interface.tun_fd))
        assert inside.addresses(NAME) == {"10.7.0.1/24"}


def test_a_namespace_that_was_let_go(inside: Namespace) -> None:
    known = Netns.identify(inside.open())
    fd = known.fd
    for _ in range(2):
        known.close()
        assert known.fd == -1
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
    assert known.id == inside.id


# ---------------------------------------------------------------- what fails leaves nothing


@both_ways
@pytest.mark.parametrize("kind", ["veth peer other", "bridge"])
def test_a_name_that_is_taken(agent: Agent, inside: Namespace, pins: bool, kind: str) -> None:
    inside.check("ip", "link", "add", NAME, "type", *kind.split())
    before = inside.ip("link")
    with pytest.raises(errors.AlreadyExists, match=f"already has an interface '{NAME}'"):
        make(agent, inside, pins)
    assert inside.ip("link") == before


@both_ways
def test_a_route_that_the_kernel_refuses(agent: Agent, inside: Namespace, pins: bool) -> None:
    inside.check("ip", "link", "add", "one", "type", "veth", "peer", "other")
    inside.check("ip", "link", "set", "one", "up")
    inside.check("ip", "route", "add", "10.9.0.0/16", "dev", "one")
    refused = SETTINGS._replace(routes=["10.9.0.0/16"])
    with pytest.raises(errors.TunFailed, match=r"route 10\.9\.0\.0/16 dev wg0: File exists"):
        make(agent, inside, pins, refused)
    wait_for(lambda: NAME not in inside.links(), "the interface is gone")


def test_no_more_namespaces(agent: Agent, inside: Namespace) -> None:
    inside.check("sh", "-c", "echo 1 >/proc/sys/user/max_net_namespaces")
    with pytest.raises(errors.LimitExceeded, match=r"user\.max_net_namespaces"):
        make(agent, inside, pins=False)
    assert set(inside.links()) == {"lo"}
    make(agent, inside, pins=True).close()


@both_ways
@pytest.mark.parametrize("room", [0, 1])
def test_no_room_for_its_fds(agent: Agent, inside: Namespace, pins: bool, room: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def ask() -> None:
        target = Netns.identify(inside.open())
        try:
            async with agent.create(target.fd, CreateInterface(NAME, SETTINGS, pins)) as asked:
                # New fds take the lowest numbers, so the limit leaves this many of them.
                free = [os.dup(target.fd) for _ in range(room + 1)]
                for fd in free:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), hard))
                await asked.created()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            target.close()

    with pytest.raises(errors.LimitExceeded, match="RLIMIT_NOFILE"):
        asyncio.run(ask())
    wait_for(lambda: set(inside.links()) == {"lo"}, "the interface is gone")


@both_ways
@pytest.mark.parametrize("seconds", [0, 0.001, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03])
def test_a_create_that_is_cancelled(
    agent: Agent, inside: Namespace, pins: bool, seconds: float
) -> None:
    async def cancel() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                (await create(agent, inside, pins=pins)).close()

    asyncio.run(cancel())
    wait_for(lambda: set(inside.links()) == {"lo"}, "the interface is gone")
    assert inside.processes() == {inside.pid}


# ---------------------------------------------------------------- the agent itself


@pytest.fixture
def own_agent() -> Iterator[Agent]:
    forked = Agent(*agents.fork())
    yield forked
    forked.end()
    assert not is_alive(forked.pid)


def test_nobody_of_its_user_sees_inside(own_agent: Agent) -> None:
    """Nor does root of a namespace that the agent's child has entered (ptrace(2))."""
    assert os.listdir("/proc/self/fd")
    child = only_child(own_agent.pid)
    for pid in (own_agent.pid, child):
        with pytest.raises(PermissionError):
            os.listdir(f"/proc/{pid}/fd")


def test_it_keeps_nothing_that_it_inherits(own_agent: Agent) -> None:
    """/proc does not show us its fds, but a pipe reports when its last writer is gone."""
    ours, theirs = os.pipe()
    high = os.dup2(theirs, 200)
    second = Agent(*agents.fork())
    os.close(theirs)
    os.close(high)
    try:
        readable, _, _ = select.select([ours], [], [], 5)
        assert readable
        assert os.read(ours, 1) == b""
        assert is_alive(second.pid)
    finally:
        second.end()
        os.close(ours)


def forks_may(agent: Agent, succeed: bool) -> None:
    """Let the agent's forks succeed or fail, by the limit on its user's processes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.prlimit(agent.pid, resource.RLIMIT_NPROC, (hard if succeed else 0, hard))


@both_ways
def test_an_agent_that_cannot_fork_says_so(
    own_agent: Agent, namespace: MakeNamespace, pins: bool
) -> None:
    inside, other = namespace(), namespace()

    async def refused() -> int:
        """Send three requests at once; return how many were refused."""
        began = time.monotonic()
        asked = (create(own_agent, other, pins=pins) for _ in range(3))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - began < SOON
        refusals = [answer for answer in answers if not isinstance(answer, NewInterface)]
        for answer in answers:
            if isinstance(answer, NewInterface):
                answer.close()
        text = "LimitExceeded: fork: Resource temporarily unavailable"
        assert [str(refusal) for refusal in refusals] == [text] * len(refusals)
        return len(refusals)

    wait_for(lambda: children(own_agent.pid), "it has forked the first request's child")
    forks_may(own_agent, False)
    with made(own_agent, inside, pins):  # by that child
        assert asyncio.run(refused()) == 3
        assert set(other.links()) == {"lo"}
        wait_for(
            lambda: not children(own_agent.pid), "the first child has ended, and no other came"
        )
    for _ in range(2):
        forks_may(own_agent, True)
        with made(own_agent, other, pins):
            forks_may(own_agent, False)
        wait_for(lambda: set(other.links()) == {"lo"}, "the interface is gone")
        # It may have been in time to fork the next request's child.
        assert asyncio.run(refused()) >= 2
        wait_for(lambda: set(other.links()) == {"lo"}, "nothing is left")


def test_an_agent_that_cannot_fork_ends_with_its_daemon(
    own_agent: Agent, inside: Namespace
) -> None:
    wait_for(lambda: children(own_agent.pid), "it has forked the first request's child")
    forks_may(own_agent, False)
    make(own_agent, inside, pins=True).close()
    with pytest.raises(errors.LimitExceeded, match="fork: "):
        make(own_agent, inside, pins=True)
    # The fixture ends it.
