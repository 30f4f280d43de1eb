"""Namespaces that no tunnel can be made in."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Opens
from pathlib import Path

import pytest

from support.bus import CREATE, MANAGER, ROOT, Bus, Client
from support.configs import Secrets
from support.daemon import Daemon
from support.fds import memfd, opened, pipe
from support.namespaces import Namespace
from support.processes import wait_for
from support.refusals import Refuses, inside_and_config
from support.stage import Stage


@contextlib.contextmanager
def read_end(_: Namespace) -> Iterator[int]:
    with pipe() as (end, _):
        yield end


@pytest.mark.parametrize(
    ("netns", "fragment"),
    [
        pytest.param(read_end, "not a namespace: expected a network namespace", id="pipe"),
        pytest.param(lambda _: opened("/dev/null"), "not a namespace", id="dev-null"),
        pytest.param(lambda _: opened("/"), "not a namespace", id="directory"),
        pytest.param(lambda _: memfd(b""), "not a namespace", id="memfd"),
        pytest.param(
            lambda n: opened(n.path, os.O_PATH), "O_PATH: expected a network namespace", id="O_PATH"
        ),
        *(
            pytest.param(
                lambda n, kind=kind: opened(f"/proc/{n.pid}/ns/{kind}"), "another type", id=kind
            )
            for kind in ("mnt", "user", "pid", "uts")
        ),
        pytest.param(lambda _: opened("/proc/self/ns/net"), "the daemon's own", id="the-hosts"),
    ],
)
def test_no_network_namespace(
    refuses: Refuses, inside: Namespace, netns: Callable[[Namespace], Opens[int]], fragment: str
) -> None:
    with netns(inside) as fd, memfd("") as config:
        refuses.create("InvalidNetns", fragment, fd, config, {})
        refuses("InvalidNetns", fragment, ROOT, MANAGER, "GetTunnelByNetns", "h", (fd,))


def test_a_namespace_of_somebody_else(refuses: Refuses, secrets: Secrets, stage: Stage) -> None:
    not_yours = "not a user namespace of yours"
    with opened(stage.roots_netns) as netns, memfd(secrets.conf()) as config:
        refuses.create("InvalidNetns", not_yours, netns, config, {})


@pytest.mark.parametrize(
    ("path", "error", "fragment"),
    [
        ("", "InvalidArgs", "netns_path: '': expected an absolute path"),
        ("run/netns/a", "InvalidArgs", "netns_path: 'run/netns/a': expected an absolute path"),
        ("/proc/self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("//proc/self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("/proc/./x/../self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("/proc/thread-self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("/dev/fd/3", "InvalidArgs", "the daemon's own file"),
        ("/dev/stdin", "InvalidArgs", "the daemon's own file"),
        ("/nowhere", "InvalidNetns", "/nowhere: No such file or directory"),
        ("/proc/1/ns/net", "InvalidNetns", "/proc/1/ns/net: Permission denied"),
        ("/" + "a" * 5000, "InvalidNetns", "File name too long"),
        ("/", "InvalidNetns", "not a namespace"),
        ("/dev/null", "InvalidNetns", "not a namespace"),
    ],
)
def test_no_path_of_a_namespace(
    refuses: Refuses, path: str, error: str, fragment: str, tmp_path: Path
) -> None:
    refuses.create_from_paths(error, fragment, path, str(tmp_path), {})


def test_a_path_that_is_a_fifo_does_not_hang(refuses: Refuses, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = str(tmp_path / "fifo")
    refuses.create_from_paths("InvalidNetns", "not a namespace", fifo, fifo, {})


def test_a_namespace_that_has_a_tunnel(
    refuses: Refuses, client: Client, inside: Namespace, secrets: Secrets
) -> None:
    """By whatever name."""
    path = client.create(inside, secrets.conf(), name="first")
    taken = "the namespace already has the tunnel 'first'"
    for other in (inside.path, f"/proc/{inside.pid}/task/{inside.pid}/ns/net"):
        with opened(other) as netns, memfd(secrets.conf()) as config:
            refuses.create("AlreadyExists", taken, netns, config, {"interface": ("s", "wg1")})
    assert set(inside.links()) == {"lo", "wg0"}
    client.close_tunnel(path)


def test_one_of_two_who_come_at_once_is_refused(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, secrets: Secrets
) -> None:
    with inside_and_config(inside, secrets) as fds, Client(bus.address) as asks:
        message = client.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {}))
        asks.send(message)
        other = client.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {}))
        reply = asks.exchange(other)
    assert reply.body[0].startswith("AlreadyExists: ")
    wait_for(lambda: [state for *_, state in client.tunnels()] == ["up"], "one is up")
    client.close_tunnel(client.tunnels()[0][1])
