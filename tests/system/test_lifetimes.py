"""How long a tunnel lives: as long as its namespace, its client, its lease, or until Close."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Opens
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from support.bus import Bus, Client, DBusError
from support.buses import ON_BOTH
from support.configs import Secrets
from support.crowd import Outcomes
from support.daemon import Daemon
from support.fds import opened
from support.installed import state
from support.namespaces import MakeNamespace, Namespace
from support.processes import open_fds, wait_for
from wg4netnsd.engine.engine import BINARY


@pytest.fixture
def conf() -> str:
    return Secrets().conf()


def wait_ended(client: Client, inside: Namespace) -> None:
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended")
    assert set(inside.links()) == {"lo"}


@dataclass
class Another:
    """A tunnel beside the one that a test is about, and what ends it."""

    path: str
    end: Callable[[], object]


@pytest.fixture
def another(client: Client, bus: Bus, namespace: MakeNamespace) -> Iterator[Callable[..., Another]]:
    """Makes one of a lifetime: another("lease", pipes_read_end)."""
    with contextlib.ExitStack() as stack:

        def make(lifetime: str, lease: Callable[[], Opens["Lease"]] | None = None) -> Another:
            inside, text = namespace(), Secrets().conf()
            match lifetime:
                case "namespace":
                    return Another(client.create(inside, text), inside.empty)
                case "client":
                    owner = stack.enter_context(contextlib.ExitStack())
                    creator = owner.enter_context(Client(bus.address))
                    return Another(creator.create(inside, text, lifetime=lifetime), owner.close)
            assert lease
            made = stack.enter_context(lease())
            options = {"lifetime": lifetime, "lease": ("h", made.fd)}
            return Another(client.create(inside, text, **options), made.end)

        yield make


def assert_lives(client: Client, path: str, another: Another) -> None:
    """Whatever has happened to the tunnel until now does not end it, as what ends another one
    happens only now, and is noticed and over."""
    another.end()
    wait_for(lambda: state(client, another.path) == "", "another tunnel has ended")
    assert client.get(path, "State") == "up"


# ---------------------------------------------------------------- namespace

END_TIME = 2.0
"""Seconds from the namespace's end to the tunnel's: what README promises."""


@pytest.fixture
def holder(namespace: MakeNamespace, request: pytest.FixtureRequest) -> Namespace:
    return namespace(nested=request.param == "nested")


@pytest.mark.parametrize("holder", ["plain", "nested"], indirect=True)
def test_a_tunnel_ends_with_its_namespace(
    daemon: Daemon, client: Client, holder: Namespace, conf: str
) -> None:
    client.subscribe(member="StateChanged")
    path = client.create(holder, conf)
    assert client.get(path, "Lifetime") == "namespace"
    holder.empty()
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended", END_TIME)
    reasons = [s.body[2] for s in client.pending_signals() if s.body[0] == "stopping"]
    assert reasons == ["the namespace has ended"]


def test_who_holds_the_namespace_keeps_the_tunnel(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    conf: str,
    another: Callable[..., Another],
) -> None:
    path = client.create(inside, conf)
    held = client.tunnel(path, "OpenNetns")
    other = another("namespace")
    inside.empty()
    assert_lives(client, path, other)
    held.close()
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended", END_TIME)


def test_a_namespace_s_end_is_noticed_without_an_engine(
    start_daemon: Callable[..., Daemon], inside: Namespace, conf: str, tmp_path: Path
) -> None:
    """In a crash loop there is nobody who reads the TUN."""
    engine = tmp_path / "wireguard-go"
    engine.symlink_to(BINARY)
    daemon = start_daemon("--engine", str(engine))
    path = daemon.client.create(inside, conf)
    engine.unlink()
    engine.symlink_to("/bin/false")
    for pid in daemon.engines():
        os.kill(pid, signal.SIGKILL)
    daemon.client.tunnel(path, "WaitForState", "ast", ["failed"], 20_000_000)
    inside.empty()
    wait_for(lambda: daemon.client.tunnels() == [], "the tunnel has ended", END_TIME)


# ---------------------------------------------------------------- client


@ON_BOTH
def test_a_clients_tunnel_ends_when_it_leaves(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, conf: str
) -> None:
    client.subscribe(member="StateChanged")
    with Client(bus.address) as owner:
        path = owner.create(inside, conf, lifetime="client")
        assert client.get(path, "Lifetime") == "client"
    wait_ended(client, inside)
    reasons = [s.body[2] for s in client.pending_signals() if s.body[0] == "stopping"]
    assert reasons == ["its client left the bus"]


@ON_BOTH
def test_another_clients_leaving_does_not_matter(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    inside: Namespace,
    conf: str,
    another: Callable[..., Another],
) -> None:
    path = client.create(inside, conf, lifetime="client")
    with Client(bus.address) as other:
        assert other.get(path, "State") == "up"
    assert_lives(client, path, another("client"))
    client.close_tunnel(path)


@ON_BOTH
def test_all_tunnels_of_a_client_end_with_it(
    daemon: Daemon, client: Client, bus: Bus, namespace: MakeNamespace
) -> None:
    spaces = [namespace() for _ in range(3)]
    with Client(bus.address) as owner:
        paths = [owner.create(n, Secrets().conf(), lifetime="client") for n in spaces]
        owner.close_tunnel(paths[0])
        assert [path for _, path, _ in client.tunnels()] == paths[1:]
    for inside in spaces:
        wait_ended(client, inside)


# ---------------------------------------------------------------- lease


@dataclass
class Lease:
    """What the daemon gets, and what ends it."""

    fd: int
    end: Callable[[], object]


@contextlib.contextmanager
def pipes_ends() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """To read from and to write to. Unlike a descriptor's number, each may be closed twice."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as read_end, open(writer, "wb", buffering=0) as write_end:
        yield read_end, write_end


@contextlib.contextmanager
def pipes_read_end() -> Iterator[Lease]:
    with pipes_ends() as (reader, writer):
        yield Lease(reader.fileno(), writer.close)


@contextlib.contextmanager
def pipes_write_end() -> Iterator[Lease]:
    with pipes_ends() as (reader, writer):
        yield Lease(writer.fileno(), reader.close)


@contextlib.contextmanager
def socket_end() -> Iterator[Lease]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Lease(theirs.fileno(), ours.close)


@contextlib.contextmanager
def half_closed_socket() -> Iterator[Lease]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Lease(theirs.fileno(), lambda: ours.shutdown(socket.SHUT_WR))


@contextlib.contextmanager
def pidfd() -> Iterator[Lease]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        fd = os.pidfd_open(process.pid)
        try:
            yield Lease(fd, process.stdin.close)
        finally:
            os.close(fd)


LEASES = pytest.mark.parametrize(
    "lease",
    [
        pytest.param(pipes_read_end, id="pipe's-read-end"),
        pytest.param(pipes_write_end, id="pipe's-write-end"),
        pytest.param(socket_end, id="socket"),
        pytest.param(half_closed_socket, id="socket-shut-down"),
        pytest.param(pidfd, id="pidfd"),
    ],
)


@ON_BOTH
@LEASES
def test_a_leased_tunnel_ends_when_the_lease_hangs_up(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    inside: Namespace,
    conf: str,
    lease: Any,
    another: Callable[..., Another],
) -> None:
    with lease() as made:
        with Client(bus.address) as creator:  # who may leave
            path = creator.create(inside, conf, lifetime="lease", lease=("h", made.fd))
        assert client.get(path, "Lifetime") == "lease"
        assert_lives(client, path, another("client"))
        made.end()
        wait_ended(client, inside)


@LEASES
def test_a_lease_that_ended_before(
    daemon: Daemon, client: Client, inside: Namespace, conf: str, lease: Any
) -> None:
    outcomes = Outcomes()
    with lease() as made:
        made.end()
        options = {"lifetime": "lease", "lease": ("h", made.fd)}
        outcomes.attempt("create", lambda: client.create(inside, conf, **options))
        wait_ended(client, inside)
    # Whether it was up for a moment does not matter.
    assert outcomes.of("create") <= {"ok", "NoSuchTunnel"}, str(outcomes)


@LEASES
def test_close_gives_the_lease_back(
    daemon: Daemon, client: Client, inside: Namespace, conf: str, lease: Any
) -> None:
    with lease() as made:
        leads_to = os.readlink(f"/proc/self/fd/{made.fd}")

        def copies() -> int:
            return list(open_fds(daemon.pid).values()).count(leads_to)

        before = copies()  # before Linux 6.9 all pidfds look the same
        path = client.create(inside, conf, lifetime="lease", lease=("h", made.fd))
        assert copies() > before
        client.close_tunnel(path)
        wait_for(lambda: copies() == before, "the daemon has closed its copy")


def test_what_is_written_into_a_lease_is_no_end(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    conf: str,
    another: Callable[..., Another],
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pipes_ends() as (reader, writer):
        path = client.create(inside, conf, lifetime="lease", lease=("h", reader.fileno()))
        writer.write(b"x" * 4096)
        assert_lives(client, path, another("lease", pipes_read_end))
        client.close_tunnel(path)
        path = client.create(inside, conf, lifetime="lease", lease=("h", theirs.fileno()))
        ours.send(b"x" * 4096)
        assert_lives(client, path, another("lease", socket_end))
        client.close_tunnel(path)


def test_a_lease_of_several_holders_ends_with_the_last(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    conf: str,
    another: Callable[..., Another],
) -> None:
    with pipes_ends() as (reader, writer):
        second = os.dup(writer.fileno())
        path = client.create(inside, conf, lifetime="lease", lease=("h", reader.fileno()))
        writer.close()
        assert_lives(client, path, another("lease", pipes_read_end))
        os.close(second)
        wait_ended(client, inside)


# ---------------------------------------------------------------- persistent


@ON_BOTH
def test_a_persistent_tunnel_survives_its_creator(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    inside: Namespace,
    conf: str,
    another: Callable[..., Another],
) -> None:
    with Client(bus.address) as creator:
        path = creator.create(inside, conf, lifetime="persistent")
    assert_lives(client, path, another("client"))
    assert client.get(path, "Lifetime") == "persistent"
    assert "wg0" in inside.links()
    client.close_tunnel(path)


def test_a_persistent_tunnel_keeps_an_empty_namespace(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    conf: str,
    another: Callable[..., Another],
) -> None:
    path = client.create(inside, conf, name="kept", lifetime="persistent")
    identity = inside.id
    inside.empty()
    assert not os.path.exists(inside.path)
    assert_lives(client, path, another("namespace"))

    # Whoever comes later finds it by the daemon.
    returned = client.tunnel(path, "OpenNetns")
    try:
        status = os.fstat(returned.fileno())
        assert (status.st_dev, status.st_ino) == identity
        assert client.manager("GetTunnelByNetns", "h", returned.fileno()) == path
    finally:
        returned.close()
    client.close_tunnel(path)


def test_only_close_ends_it_and_the_namespace_is_free_again(
    daemon: Daemon, client: Client, inside: Namespace, conf: str
) -> None:
    client.close_tunnel(client.create(inside, conf, lifetime="persistent"))
    assert set(inside.links()) == {"lo"}
    with opened(inside.path) as fd, pytest.raises(DBusError, match="NoSuchTunnel"):
        client.manager("GetTunnelByNetns", "h", fd)
    client.close_tunnel(client.create(inside, conf, lifetime="client"))
    assert set(inside.links()) == {"lo"}
