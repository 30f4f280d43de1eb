"""The daemon's own end: what its successor finds, and what nobody notices meanwhile."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields

from support.bus import TUNNEL, Client
from support.buses import ON_BOTH
from support.configs import Secrets
from support.installed import assert_nothing_left, crash, main_pid, wait_successor
from support.manager import UNIT, UserManager
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import wait_for
from support.stage import Stage
from support.transfer import Transfer


@dataclass
class Up:
    """A tunnel of the unit's daemon, with traffic in it."""

    client: Client
    inside: Namespace
    path: str

    def known(self) -> dict[str, object]:
        """What a client sees of it and what must not change."""
        (peer,) = self.client.peers(self.path).values()
        changing = ("rx_bytes", "tx_bytes")
        return self.client.get_all(self.path) | {
            "Peers": {key: value for key, value in peer.items() if key not in changing}
        }


@pytest.fixture
def up(installed: UserManager, namespace: MakeNamespace, stage: Stage) -> Iterator[Up]:
    inside = namespace()
    with Client(installed.address) as client:
        path = client.create(inside, stage.conf(0), name="kept")
        ping(inside, stage.far.ipv4)
        yield Up(client, inside, path)


def restart(manager: UserManager) -> None:
    before = main_pid(manager)
    manager.systemctl("restart", UNIT)
    wait_successor(manager, before)


ENDS = pytest.mark.parametrize(
    "end",
    [
        pytest.param(crash, id="SIGKILL"),
        pytest.param(lambda manager: crash(manager, "SIGABRT"), id="SIGABRT"),
        pytest.param(restart, id="restart"),
    ],
)


@ON_BOTH
@ENDS
def test_a_tunnel_stays_as_it_was(
    installed: UserManager, up: Up, stage: Stage, end: Callable[[UserManager], object]
) -> None:
    """And so does what is known of an engine that it has lost before."""
    os.kill(up.client.get(up.path, "EnginePID"), signal.SIGKILL)
    wait_for(lambda: up.client.get(up.path, "RestartCount") == 1, "there is another engine")
    ping(up.inside, stage.far.ipv4)
    before = up.known()
    assert "SIGKILL" in str(before["LastError"])
    with Transfer(up.inside, stage.far.ipv4, stage.far.echo_port) as transfer:
        transfer.wait_for_progress()
        for _ in range(3):
            end(installed)
            assert up.known() == before
            transfer.wait_for_progress()
        transfer.finish()
    up.client.close_tunnel(up.path)
    assert set(up.inside.links()) == {"lo"}


def test_resolv_conf_stays_where_it_is_bound(
    installed: UserManager, namespace: MakeNamespace
) -> None:
    """The same inode, with the text of the configuration that is in force."""
    conf = Secrets().conf("Address = 10.9.0.2/24\nDNS = 10.2.0.1, lan")
    with Client(installed.address) as client:
        path = client.create(namespace(), conf, name="kept")
        file = Path(client.get(path, "ResolvConf"))
        assert file == installed.runtime / "wg4netnsd/kept/resolv.conf"
        assert file.stat().st_mode & 0o7777 == 0o644  # whatever the unit's UMask= says
        text, inode, written = file.read_text(), file.stat().st_ino, file.stat().st_mtime_ns
        crash(installed)
        assert (file.read_text(), file.stat().st_ino) == (text, inode)
        assert file.stat().st_mtime_ns == written

        # As a daemon leaves it that was killed on its way to another configuration.
        file.write_text("nameserver 10.3.0.1\n" * 20)
        crash(installed)
        assert (file.read_text(), file.stat().st_ino) == (text, inode)

        file.unlink()
        crash(installed)
        assert file.read_text() == text
        assert client.get(path, "RestartCount") == 0
        client.close_tunnel(path)
        assert list((installed.runtime / "wg4netnsd").iterdir()) == []


def test_whether_root_is_trusted(installed: UserManager, namespace: MakeNamespace) -> None:
    with Client(installed.address) as client:
        paths = {
            trusted: client.create(namespace(), Secrets().conf(), trust_root=trusted)
            for trusted in (True, False)
        }
        crash(installed)
        for trusted, path in paths.items():
            assert client.get(path, "RootTrusted") is trusted
            client.close_tunnel(path)


def test_stop_ends_everything(installed: UserManager, up: Up) -> None:
    installed.systemctl("stop", UNIT)
    assert_nothing_left(installed)
    assert set(up.inside.links()) == {"lo"}
    installed.systemctl("start", UNIT)
    assert up.client.tunnels() == []


@ON_BOTH
def test_who_waits_for_a_state_delays_no_restart(installed: UserManager, up: Up) -> None:
    never = (["failed"], 60_000_000)
    with Client(installed.address) as waiting:
        serial = next(waiting.connection.outgoing_serial)
        call = waiting.message(up.path, TUNNEL, "WaitForState", "ast", never)
        waiting.connection.send(call, serial=serial)
        waiting.tunnels()  # so that one has arrived, too
        restart(installed)
        fields: dict[Any, Any] = {}
        while fields.get(HeaderFields.reply_serial) != serial:
            fields = waiting.connection.receive(timeout=10).header.fields
    assert fields[HeaderFields.error_name] == "org.wg4netns1.Error.ShuttingDown"
    assert up.client.get(up.path, "State") == "up"
