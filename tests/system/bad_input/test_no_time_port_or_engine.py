"""Nothing is wrong with the call, but time is over, the port is taken, or there is no engine."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager as Opens
from pathlib import Path

import pytest

from support.bus import MANAGER, ROOT
from support.configs import Secrets
from support.daemon import SOON, Daemon
from support.fds import changed_package, copied_package, memfd, opened, udp_port_in_use
from support.namespaces import MakeNamespace, Namespace
from support.refusals import Refuses, a_pipe_that_never_ends, inside_and_config


@pytest.mark.parametrize("config", [a_pipe_that_never_ends, lambda: memfd("")], ids=["fifo", "1us"])
def test_the_callers_time_is_over(
    refuses: Refuses, inside: Namespace, config: Callable[[], Opens[int]]
) -> None:
    usec = 100_000 if config is a_pipe_that_never_ends else 1
    began = time.monotonic()
    with opened(inside.path) as netns, config() as fd:
        if usec == 1:
            os.write(fd, Secrets().conf().encode())
        refuses.create("Timeout", "not up within", netns, fd, {"timeout_usec": ("t", usec)})
    assert time.monotonic() - began < SOON


def test_a_port_that_is_in_use(refuses: Refuses, inside: Namespace, secrets: Secrets) -> None:
    taken, port = udp_port_in_use()
    config = secrets.conf(f"Address = 10.9.0.2/24\nListenPort = {port}")
    with taken, opened(inside.path) as netns, memfd(config) as fd:
        refuses.create("EngineFailed", "ListenPort: the port is in use on the host", netns, fd, {})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return copied_package(tmp_path)


VERSION = '#!/bin/sh\n[ "$1" != --version ] || exec echo "wireguard-go v0"\n'


@pytest.mark.parametrize(
    ("engine", "mode", "error", "fragment"),
    [
        pytest.param(None, 0, "EngineFailed", "No such file or directory", id="missing"),
        pytest.param(VERSION, 0o600, "EngineFailed", "Permission denied", id="not-executable"),
        pytest.param("rubbish", 0o700, "EngineFailed", "Exec format error", id="no-program"),
        pytest.param(
            f"{VERSION}echo out of luck >&2; exit 3",
            0o700,
            "EngineFailed",
            "wireguard-go ended with status 3: out of luck",
            id="dies",
        ),
        pytest.param(
            f"{VERSION}exec sleep 1000", 0o700, "Timeout", "no answer within 10 s", id="hangs"
        ),
    ],
)
def test_no_engine(
    start_daemon: Callable[..., Daemon],
    package: Path,
    inside: Namespace,
    secrets: Secrets,
    engine: str | None,
    mode: int,
    error: str,
    fragment: str,
) -> None:
    binary = package / "bin/wireguard-go"
    binary.unlink()
    if engine is not None:
        binary.write_text(engine)
        binary.chmod(mode)
    started = start_daemon(PYTHONPATH=str(package.parent))
    for _ in range(2):
        with inside_and_config(inside, secrets) as fds:
            refuses = Refuses(started.client, secrets)
            refuses.create(error, fragment, *fds, {})
        assert set(inside.links()) == {"lo"}
    assert started.client.tunnels() == []
    secrets.assert_hidden_in(started.log)


def test_as_many_tunnels_as_the_limit_allows(
    start_daemon: Callable[..., Daemon], tmp_path: Path, namespace: MakeNamespace, secrets: Secrets
) -> None:
    limits = "MAX_TUNNELS: Final = 256\n", "MAX_TUNNELS: Final = 2\n"
    package = changed_package(tmp_path, "tunnel/manager.py", *limits)
    started = start_daemon(PYTHONPATH=str(package.parent))
    client = started.client
    assert client.get(ROOT, "MaxTunnels", MANAGER) == 2
    first, _ = (client.create(namespace(), secrets.conf()) for _ in range(2))
    third = namespace()
    with inside_and_config(third, secrets) as fds:
        Refuses(client, secrets).create("LimitExceeded", "there are 2 tunnels already", *fds, {})
    client.close_tunnel(first)
    client.create(third, secrets.conf())
    started.assert_idle()
