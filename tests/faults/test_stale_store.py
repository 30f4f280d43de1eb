"""What systemd holds is out of date: something has happened while there was no daemon.

The daemon is killed, its successor kept from starting, and started only after the fault. Another
tunnel of the same daemons goes on all the time.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.aftermath import Seen, Then, Tunnel, assert_no_strays
from support.bus import Client
from support.manager import UserManager
from support.namespaces import MakeNamespace, ping
from support.stage import Stage
from support.tamper import Tampering, changed_unit, tampering
from wg4netnsd.engine.engine import BINARY


@dataclass
class Scene:
    """A tunnel to which the fault happens, and one beside it."""

    unit: Tampering
    client: Client
    owner: ExitStack  # the bus client that has made it; closed, it leaves
    lease: ExitStack  # the other end of its lease; closed, it hangs up
    struck: Tunnel
    beside: Tunnel


# ---------------------------------------------------------------- the faults


def nothing(scene: Scene) -> None:
    """There is no daemon for a moment, and that is all."""


def engine_ends(scene: Scene) -> None:
    os.kill(scene.struck.before.engine, signal.SIGKILL)


def engine_hangs(scene: Scene) -> None:
    """It is asked when it is taken over, and gives no answer: that takes 10 s to be sure of."""
    os.kill(scene.struck.before.engine, signal.SIGSTOP)


def engines_socket_vanishes(scene: Scene) -> None:
    (scene.unit.manager.runtime / "wg4netnsd/struck/wg0.sock").unlink()


def namespace_ends(scene: Scene) -> None:
    scene.struck.inside.empty()


def interface_is_deleted(scene: Scene) -> None:
    scene.struck.inside.check("ip", "link", "delete", "wg0")


def interface_is_renamed(scene: Scene) -> None:
    inside = scene.struck.inside
    inside.check("sh", "-ec", "ip link set wg0 down; ip link set wg0 name tunnel0 up")


def client_leaves(scene: Scene) -> None:
    scene.owner.close()


def lease_ends(scene: Scene) -> None:
    scene.lease.close()


FAULTS = pytest.mark.parametrize(
    ("fault", "lifetime", "then"),
    [
        pytest.param(fault, lifetime, then, id=fault.__name__.replace("_", "-"))
        for fault, lifetime, then in [
            (nothing, "namespace", Then.AS_IT_WAS),
            (engine_ends, "namespace", Then.NEW_ENGINE),
            (engine_hangs, "namespace", Then.NEW_ENGINE),
            (engines_socket_vanishes, "namespace", Then.NEW_ENGINE),
            (namespace_ends, "namespace", Then.ENDED),
            (namespace_ends, "persistent", Then.AS_IT_WAS),
            (interface_is_deleted, "namespace", Then.ENDED),
            (interface_is_deleted, "persistent", Then.ENDED),
            (interface_is_renamed, "namespace", Then.AS_IT_WAS),
            (nothing, "client", Then.AS_IT_WAS),
            (client_leaves, "client", Then.ENDED),
            (nothing, "lease", Then.AS_IT_WAS),
            (lease_ends, "lease", Then.ENDED),
        ]
    ],
)


@pytest.fixture
def unit(installed: UserManager, tmp_path: Path) -> Iterator[Tampering]:
    with tampering(installed, tmp_path) as changed:
        yield changed


@pytest.fixture
def scene(
    unit: Tampering, namespace: MakeNamespace, stage: Stage, lifetime: str
) -> Iterator[Scene]:
    address = unit.manager.address
    with ExitStack() as stack:
        client = stack.enter_context(Client(address))
        owner, lease = ExitStack(), ExitStack()
        stack.callback(owner.close)
        stack.callback(lease.close)
        reader, writer = os.pipe()
        lease.callback(os.close, writer)
        options = {"lifetime": lifetime} | ({"lease": ("h", reader)} if lifetime == "lease" else {})
        inside = namespace()
        maker = owner.enter_context(Client(address))
        path = maker.create(inside, stage.conf(0), name="struck", **options)
        os.close(reader)
        ping(inside, stage.far.ipv4)
        struck = Tunnel(inside, path, Seen.of(client, path))
        inside = namespace()
        path = client.create(inside, stage.conf(1), name="beside")
        ping(inside, stage.far.ipv4)
        beside = Tunnel(inside, path, Seen.of(client, path))
        yield Scene(unit, client, owner, lease, struck, beside)
        for _, path, _ in client.tunnels():
            client.close_tunnel(path)


@FAULTS
def test_while_there_is_no_daemon(
    scene: Scene, stage: Stage, fault: Callable[[Scene], None], then: Then
) -> None:
    with scene.unit.down():
        fault(scene)
        ping(scene.beside.inside, stage.far.ipv4)
    scene.beside.assert_then(Then.AS_IT_WAS, scene.client)
    scene.struck.assert_then(then, scene.client)
    assert_no_strays(scene.unit.manager, scene.client)
    its_files = scene.unit.manager.runtime / "wg4netnsd/struck"
    assert its_files.exists() is (then is not Then.ENDED)
    if scene.struck.inside.holder.poll() is None:
        if then is Then.ENDED:
            assert set(scene.struck.inside.links()) == {"lo"}
        else:
            ping(scene.struck.inside, stage.far.ipv4)


def test_an_engine_of_another_version_is_for_the_next_tunnel(
    installed: UserManager, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    """An upgrade replaces the program's file; what runs goes on until it is replaced too."""
    program = tmp_path / "wireguard-go"
    shutil.copy(BINARY, program)
    with (
        changed_unit(installed, lambda command: f"{command} --engine {program}"),
        Client(installed.address) as client,
    ):
        inside = namespace()
        path = client.create(inside, stage.conf(0))
        tunnel = Tunnel(inside, path, Seen.of(client, path))
        upgraded = program.with_suffix(".new")
        shutil.copy(stage.short_engine, upgraded)
        upgraded.rename(program)
        installed.systemctl("restart", "wg4netnsd.service")
        tunnel.assert_then(Then.AS_IT_WAS, client)
        client.tunnel(path, "Restart")
        assert Seen.of(client, path).engine != tunnel.before.engine
        ping(inside, stage.far.ipv4)
