"""The engine for arm64, run by qemu's emulation of one (qemu-user)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon
from support.namespaces import MakeNamespace, ping
from support.processes import program
from support.stage import Stage
from support.tunnels import tunnel
from system.test_build import run_build

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # a cold build is all CPU

EMULATOR = "/usr/bin/qemu-aarch64"


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon], tmp_path: Path) -> Daemon:
    """A daemon whose engines are for arm64."""
    engine, script = tmp_path / "wireguard-go", tmp_path / "emulated"
    run_build("--arch", "aarch64", "--output", engine)
    script.write_text(f"#!/bin/sh\nexec {EMULATOR} {engine}\n")
    script.chmod(0o755)
    return start_daemon("--engine", str(script))


def test_it_reaches_a_far_end_of_another_architecture(
    daemon: Daemon, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    with tunnel(daemon.client, inside, stage.conf(0)) as path:
        ping(inside, stage.far.ipv4)
        ping(inside, stage.far.ipv6)
        assert program(daemon.client.get(path, "EnginePID")) == Path(EMULATOR).name
