"""The watch reports each change that the owner makes to the interface once, and nothing else."""

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from support.interfaces import NAME, Watching
from support.namespaces import MakeNamespace, Namespace
from support.processes import open_fds, wait_for
from wg4netnsd.agent.client import Agent
from wg4netnsd.kernel import tun
from wg4netnsd.tunnel import link_watch
from wg4netnsd.tunnel.link_watch import LinkEnd, LinkStatus
from wg4netnsd.tunnel.netns import Netns

UP, DOWN = LinkStatus(NAME, True), LinkStatus(NAME, False)
LAST = LinkStatus("last", True)

Make = Callable[..., Watching]


@pytest.fixture
def watching(agent: Agent, namespace: MakeNamespace) -> Iterator[Make]:
    """A function that makes an interface in a namespace of its own."""
    before = open_fds(os.getpid())
    with contextlib.ExitStack() as stack:

        def make(pins: bool, inside: Namespace | None = None) -> Watching:
            subject = Watching(agent, inside or namespace(), pins=pins)
            stack.callback(subject.close)
            return subject

        yield make
    pipes = {"pipe:"}  # of the namespaces' holders, which outlive us
    left = {fd: to for fd, to in open_fds(os.getpid()).items() if to[:5] not in pipes}
    assert left == {fd: to for fd, to in before.items() if to[:5] not in pipes}


@pytest.fixture(params=[True, False], ids=["in place", "sibling"])
def subject(request: pytest.FixtureRequest, watching: Make) -> Watching:
    """An interface that is up; all reports about that have been read."""
    made = watching(request.param)
    made.watch()
    assert made.told(UP) == [UP]
    return made


@pytest.fixture
def sibling(watching: Make) -> Watching:
    made = watching(pins=False)
    made.watch()
    assert made.told(UP) == [UP]
    return made


class Other:
    """Another network namespace of the same owner."""

    def __init__(self, inside: Namespace) -> None:
        self.holder = inside.popen(
            "unshare", "--net", "sh", "-c", "echo inside && exec cat",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.holder.stdout
        assert self.holder.stdout.readline() == "inside\n"
        self._inside = inside

    def check(self, *command: str) -> None:
        target = f"--target={self.holder.pid}"
        enter = ("nsenter", "--preserve-credentials", "--user", "--net", target)
        subprocess.run([*enter, *command], check=True)

    def end(self) -> None:
        self.holder.communicate()


@pytest.fixture
def other() -> Iterator[Callable[[Watching], Other]]:
    made: list[Other] = []

    def make(subject: Watching) -> Other:
        made.append(Other(subject.inside))
        return made[-1]

    yield make
    for each in made:
        if each.holder.poll() is None:
            each.end()


def to(other: Other) -> str:
    """Return the argument for `ip link set … netns`."""
    return str(other.holder.pid)


# ---------------------------------------------------------------- changes


def test_down_up_and_names(subject: Watching) -> None:
    subject.owner(
        "ip link set wg0 down", "ip link set wg0 up", "ip link set wg0 name mine",
        "ip link set mine down", "ip link set mine name last", "ip link set last up",
    )  # fmt: skip
    assert subject.told(LAST) == [
        DOWN, UP, LinkStatus("mine", True), LinkStatus("mine", False),
        LinkStatus("last", False), LAST,
    ]  # fmt: skip


def test_what_else_happens_is_not_told(subject: Watching) -> None:
    subject.owner(
        "ip link set wg0 up",
        "ip link set wg0 mtu 1400",
        "ip link set wg0 alias something",
        "ip address add 10.5.0.1/24 dev wg0",
        "ip route add 10.6.0.0/16 dev wg0",
        "ip link add one type veth peer two",
        "ip link set one up",
        "ip link set one down",
        "ip link del one",
        "ip link set wg0 name last",
    )
    assert subject.told(LAST) == [LAST]


def test_other_links_do_not_even_wake_us(subject: Watching) -> None:
    fd = subject.watched.fd
    subject.owner("ip link add one type veth peer two", "ip link set one up", "ip link del one")
    assert select.select([fd], [], [], 0)[0] == []
    subject.owner("ip link set wg0 name last")
    assert select.select([fd], [], [], 0)[0] == [fd]
    assert subject.told(LAST) == [LAST]


def test_a_bridge_of_that_index_in_another_namespace(
    sibling: Watching, other: Callable[[Watching], Other]
) -> None:
    elsewhere = other(sibling)
    index = str(sibling.watched.link.ifindex)
    elsewhere.check("ip", "link", "add", "foreign", "index", index, "type", "bridge")
    elsewhere.check("ip", "link", "set", "foreign", "up")
    elsewhere.check("ip", "link", "del", "foreign")
    sibling.owner("ip link set wg0 name last")
    assert sibling.told(LAST) == [LAST]


FORGE = """
import socket, struct
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
    forger.sendto(struct.pack("=IHHIIBxHiII", 32, 17, 0, 0, 0, 0, 0xFFFE, {index}, 0, 0), (0, 1))
"""


def test_only_the_kernel_is_believed(subject: Watching) -> None:
    """The namespace's root may send an RTM_DELLINK to the group that the watch listens to."""
    index = subject.watched.link.ifindex
    subject.inside.check(sys.executable, "-c", FORGE.format(index=index))
    subject.owner("ip link set wg0 name last")
    assert subject.told(LAST) == [LAST]


# ---------------------------------------------------------------- ends


def test_deleted(subject: Watching) -> None:
    subject.owner("ip link del wg0")
    assert subject.told(LinkEnd.DELETED) == [DOWN, LinkEnd.DELETED]
    assert tun.is_gone(subject.tun_fd)


def test_moved_and_back(subject: Watching, other: Callable[[Watching], Other]) -> None:
    elsewhere = other(subject)
    subject.owner(f"ip link set wg0 netns {to(elsewhere)}")
    assert subject.told(LinkEnd.MOVED) == [DOWN, LinkEnd.MOVED]
    there = Netns.of_tun(subject.tun_fd)
    assert there.id != subject.inside.id
    there.close()
    assert subject.watch_anew() == DOWN
    elsewhere.check("ip", "link", "set", NAME, "up")
    elsewhere.check("ip", "link", "set", NAME, "netns", str(subject.inside.pid))
    assert subject.told(LinkEnd.MOVED) == [UP, DOWN, LinkEnd.MOVED]
    assert subject.watch_anew() == DOWN
    subject.owner("ip link set wg0 up", "ip link set wg0 name last")
    assert subject.told(LAST) == [UP, LAST]


def test_moved_to_where_it_ends(subject: Watching, other: Callable[[Watching], Other]) -> None:
    """No watch keeps the second namespace alive, since the TUN was not opened there."""
    elsewhere = other(subject)
    subject.owner(f"ip link set wg0 netns {to(elsewhere)}")
    subject.told(LinkEnd.MOVED)
    subject.watch_anew()
    elsewhere.end()
    assert subject.told(LinkEnd.ENDED) == [LinkEnd.ENDED]


def test_its_last_process_leaves(sibling: Watching) -> None:
    sibling.inside.empty()
    assert sibling.told(LinkEnd.ENDED) == [LinkEnd.ENDED]
    wait_for(lambda: tun.is_gone(sibling.tun_fd), "so does the interface")


def test_its_last_process_is_killed(sibling: Watching) -> None:
    sibling.inside.holder.kill()
    sibling.inside.empty()
    assert sibling.told(LinkEnd.ENDED) == [LinkEnd.ENDED]


def test_a_nested_one_ends(watching: Make, namespace: MakeNamespace) -> None:
    subject = watching(False, namespace(nested=True))
    subject.watch()
    subject.inside.empty()
    assert subject.told(LinkEnd.ENDED) == [UP, LinkEnd.ENDED]


def test_its_last_fd_is_closed(sibling: Watching) -> None:
    fd = sibling.inside.open()
    try:
        sibling.inside.empty()
        kept = Netns.of_tun(sibling.tun_fd)
        kept.close()
    finally:
        os.close(fd)
    assert sibling.told(LinkEnd.ENDED) == [LinkEnd.ENDED]


def test_it_is_unmounted(sibling: Watching) -> None:
    """`ip netns` and container runtimes keep a namespace alive by a mount."""
    script = """
        mount -t tmpfs none /mnt && touch /mnt/ns && mount --bind /proc/self/ns/net /mnt/ns &&
        exec unshare --net sh -c 'echo mounted && read _ && umount /mnt/ns && exec cat'
    """
    mounter = sibling.inside.popen(
        "unshare", "--mount", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert mounter.stdin
    assert mounter.stdout
    assert mounter.stdout.readline() == "mounted\n"
    assert sibling.inside.processes() == {sibling.inside.pid}
    sibling.inside.empty()
    kept = Netns.of_tun(sibling.tun_fd)  # by the mount, as by no process
    kept.close()
    mounter.stdin.write("\n")
    mounter.stdin.flush()
    assert sibling.told(LinkEnd.ENDED) == [LinkEnd.ENDED]
    mounter.communicate()


def test_the_end_of_a_namespace_that_only_the_owner_numbers(
    sibling: Watching, other: Callable[[Watching], Other]
) -> None:
    """The kernel also reports numbers in the owner's namespace, and they may equal ours."""
    elsewhere = other(sibling)
    sibling.owner("ip link add one type veth peer two", f"ip link set two netns {to(elsewhere)}")
    (one,) = sibling.inside.ip("link", "show", "dev", "one")
    assert one["link_netnsid"] == sibling.watched.link.nsid == 0
    elsewhere.end()
    wait_for(lambda: "one" not in sibling.inside.links(), "the pair ends with its other end")
    sibling.owner("ip link set wg0 name last")
    assert sibling.told(LAST) == [LAST]


# ---------------------------------------------------------------- begun anew, and overrun


def test_watched_anew_it_is_told_as_it_is(subject: Watching) -> None:
    subject.owner("ip link set wg0 name mine")
    assert subject.watch_anew() == LinkStatus("mine", True)
    subject.owner("ip link set mine down", "ip link set mine name last")
    subject.owner("ip link set last up")
    assert subject.told(LAST)[-3:] == [
        LinkStatus("mine", False), LinkStatus("last", False), LAST,
    ]  # fmt: skip


def test_watched_anew_it_ends(sibling: Watching) -> None:
    sibling.watch_anew()
    sibling.inside.empty()
    assert sibling.told(LinkEnd.ENDED) == [LinkEnd.ENDED]


@pytest.fixture(params=[True, False], ids=["in place", "sibling"])
def overrun(request: pytest.FixtureRequest, watching: Make) -> Watching:
    """An interface whose socket is too small for all reports, and which nobody reads yet."""
    made = watching(request.param)
    with socket.socket(fileno=os.dup(made.watched.fd)) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel takes its minimum
    made.owner(*["ip link set wg0 down", "ip link set wg0 up"] * 10, "ip link set wg0 name last")
    return made


def test_overrun_it_is_told_as_it_is(overrun: Watching) -> None:
    overrun.watch()
    assert overrun.told(LAST) == [LAST]
    overrun.owner("ip link del last")
    assert overrun.told(LinkEnd.DELETED)[-1:] == [LinkEnd.DELETED]


def test_overrun_and_deleted(overrun: Watching) -> None:
    overrun.owner("ip link del last")
    overrun.watch()
    assert overrun.told(LinkEnd.DELETED) == [LinkEnd.DELETED]


def test_overrun_and_moved(overrun: Watching, other: Callable[[Watching], Other]) -> None:
    overrun.owner(f"ip link set last netns {to(other(overrun))}")
    overrun.watch()
    assert overrun.told(LinkEnd.MOVED) == [LinkEnd.MOVED]


def test_overrun_and_ended(watching: Make) -> None:
    subject = watching(pins=False)
    with socket.socket(fileno=os.dup(subject.watched.fd)) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    subject.owner(*["ip link set wg0 down", "ip link set wg0 up"] * 10)
    subject.inside.empty()
    wait_for(lambda: tun.is_gone(subject.tun_fd), "the namespace ends")
    subject.watch()
    assert subject.told(LinkEnd.ENDED) == [LinkEnd.ENDED]


# ---------------------------------------------------------------- what a message means


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(index: int, family: int = socket.AF_UNSPEC, flags: int = 1) -> bytes:
    name = struct.pack("=HH4s", 8, 3, b"wg0\0")  # IFLA_IFNAME
    return struct.pack("=BxHiII", family, 0xFFFE, index, flags, 0) + name


NEWLINK, DELLINK, NEWNSID, DELNSID, ERROR = 16, 17, 88, 89, 2
NSID_0 = struct.pack("=4xHHi", 8, 1, 0)


@pytest.mark.parametrize(
    ("kind", "body", "sender", "expected"),
    [
        (NEWLINK, link(7), 0, UP),
        (NEWLINK, link(7), None, UP),
        (NEWLINK, link(7, flags=0), 0, DOWN),
        (NEWLINK, link(8), 0, None),
        (NEWLINK, link(7), 1, None),
        (NEWLINK, link(7, socket.AF_BRIDGE), 0, None),
        (DELLINK, link(7), 0, LinkEnd.DELETED),
        (DELLINK, link(7) + struct.pack("=HHi", 8, 45, 0), 0, LinkEnd.MOVED),  # IFLA_NEW_NETNSID
        (DELLINK, link(7, socket.AF_BRIDGE), 0, None),
        (DELLINK, link(7), 1, None),
        (DELNSID, NSID_0, None, LinkEnd.ENDED),
        (DELNSID, NSID_0, 0, None),
        (DELNSID, struct.pack("=4xHHi", 8, 1, 1), None, None),
        (NEWNSID, NSID_0, None, None),
    ],
)
def test_messages(
    kind: int, body: bytes, sender: int | None, expected: LinkStatus | LinkEnd | None
) -> None:
    assert link_watch.understand(message(kind, body), sender, 7, 0) == expected


def test_a_refusal() -> None:
    refusal = link_watch.understand(message(ERROR, struct.pack("=i16x", -19)), None, 7, 0)
    assert isinstance(refusal, OSError)
    assert str(refusal) == "[Errno 19] No such device: 'link 7'"
