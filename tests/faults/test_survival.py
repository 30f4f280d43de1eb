"""The daemon's own end: what its successor finds, and what nobody notices meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from jeepney import HeaderFields

from support.bus import TUNNEL, Client
from support.installed import assert_nothing_left, crash, main_pid, wait_successor
from support.manager import UNIT, UserManager
from support.namespaces import Namespace, ping
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
def up(installed: UserManager, namespace: Callable[..., Namespace], stage: Stage) -> Iterator[Up]:
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


@ENDS
def test_a_tunnel_stays_as_it_was(
    installed: UserManager, up: Up, stage: Stage, end: Callable[[UserManager], object]
) -> None:
    before = up.known()
    with Transfer(up.inside, stage.far.ipv4, stage.far.echo_port) as transfer:
        transfer.wait_for_progress()
        for _ in range(3):
            end(installed)
            assert up.known() == before
            transfer.wait_for_progress()
        transfer.finish()
    up.client.close_tunnel(up.path)
    assert set(up.inside.links()) == {"lo"}


def test_stop_ends_everything(installed: UserManager, up: Up) -> None:
    installed.systemctl("stop", UNIT)
    assert_nothing_left(installed)
    assert set(up.inside.links()) == {"lo"}
    installed.systemctl("start", UNIT)
    assert up.client.tunnels() == []


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
