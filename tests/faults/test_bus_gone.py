"""The bus goes, or our name on it, or the whole session.

With systemd the next daemon finds the next bus, and tunnels are not touched meanwhile; without it
the daemon ends, and everything with it.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.aftermath import Seen, Then, Tunnel, assert_no_strays
from support.bus import NAME, Bus, Client
from support.buses import ON_BOTH
from support.configs import Secrets
from support.daemon import PROGRAM, Daemon
from support.installed import assert_nothing_left, main_pid, state, wait_successor
from support.journal import Journal
from support.manager import UNIT, UserManager, ctl
from support.namespaces import MakeNamespace, ping
from support.processes import is_alive, of_program, wait_for
from support.stage import Stage
from support.transfer import Transfer

BUS_UNIT = "dbus.service"
pytestmark = ON_BOTH

TAKEN = f"{NAME} is owned already: is another wg4netnsd running?"


# ---------------------------------------------------------------- the bus


def kill_the_bus(manager: UserManager) -> None:
    """dbus.socket starts it again for the first who comes."""
    manager.systemctl("kill", "--signal=SIGKILL", BUS_UNIT)


def restart_the_bus(manager: UserManager) -> None:
    manager.systemctl("restart", BUS_UNIT)


@pytest.mark.parametrize("fault", [kill_the_bus, restart_the_bus])
def test_tunnels_outlive_the_bus(
    installed: UserManager,
    namespace: MakeNamespace,
    stage: Stage,
    fault: Callable[[UserManager], None],
) -> None:
    """But for those whose client was on it."""
    inside, clients = namespace(), namespace()
    with Client(installed.address) as client:
        path = client.create(inside, stage.conf(0))
        kept = Tunnel(inside, path, Seen.of(client, path))
        path = client.create(clients, stage.conf(1), lifetime="client")
        ended = Tunnel(clients, path, Seen.of(client, path))
        with Transfer(inside, stage.far.ipv4, stage.far.echo_port) as transfer:
            transfer.wait_for_progress()
            before = main_pid(installed)
            fault(installed)
            transfer.wait_for_progress()
            wait_successor(installed, before)
            transfer.wait_for_progress()
            transfer.finish()
    with Client(installed.address) as client:
        kept.assert_then(Then.AS_IT_WAS, client)
        ended.assert_then(Then.ENDED, client)
        assert set(clients.links()) == {"lo"}
        assert_no_strays(installed, client)
        client.close_tunnel(kept.path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_without_systemd_the_daemon_ends_with_its_bus(
    start_daemon: Callable[..., Daemon],
    namespace: MakeNamespace,
    how: signal.Signals,
) -> None:
    daemon = start_daemon()
    inside = namespace()
    daemon.client.create(inside, Secrets().conf())
    engines = daemon.engines()
    os.kill(daemon.client.bus("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus"), how)
    assert daemon.process.wait(10) == 69
    daemon.client.close()
    assert "the bus has closed the connection" in daemon.log
    assert "Traceback" not in daemon.log
    wait_for(lambda: not any(map(is_alive, engines)), "the engines have ended")
    assert set(inside.links()) == {"lo"}
    assert list(daemon.runtime.iterdir()) == []


# ---------------------------------------------------------------- the name


def test_a_second_daemon_says_so_and_leaves(bus: Bus, tmp_path: Path) -> None:
    with Client(bus.address) as owner:
        owner.bus("RequestName", "su", NAME, 0)
        its = {"DBUS_SESSION_BUS_ADDRESS": bus.address, "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(
            [PROGRAM], env=os.environ | its, capture_output=True, text=True, timeout=20
        )
    assert (done.returncode, TAKEN in done.stderr) == (78, True)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_systemd_does_not_try_for_ever_where_the_name_is_taken(installed: UserManager) -> None:
    journal = Journal()
    with Client(installed.address) as owner:
        owner.bus("RequestName", "su", NAME, 0)
        installed.systemctl("start", UNIT, check=False)
        assert installed.property(UNIT, "ExecMainStatus") == "78"
        assert installed.property(UNIT, "ActiveState") == "failed"
        assert installed.property(UNIT, "NRestarts") == "0"
    assert TAKEN in journal.messages(SYSLOG_IDENTIFIER="wg4netnsd")
    installed.systemctl("start", UNIT)


def test_nothing_is_left_where_the_name_is_taken_meanwhile(
    installed: UserManager, namespace: MakeNamespace
) -> None:
    """The next daemon could serve nobody; and it would never be started again by itself."""
    inside = namespace()
    with Client(installed.address) as client, Client(installed.address) as heir:
        client.create(inside, Secrets().conf())
        heir.bus("RequestName", "su", NAME, 0)  # in the queue: it is next
        installed.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", UNIT)
        wait_for(lambda: installed.property(UNIT, "ActiveState") == "failed", "it gives up", 20)
        assert installed.property(UNIT, "ExecMainStatus") == "78"
        assert installed.property(UNIT, "NFileDescriptorStore") == "0"
        wait_for(lambda: of_program("wireguard-go") == set(), "the engines end")
        assert set(inside.links()) == {"lo"}
    installed.systemctl("reset-failed", UNIT)
    assert_nothing_left(installed)


def test_nobody_can_take_the_name_from_it(
    start_daemon: Callable[..., Daemon], namespace: MakeNamespace
) -> None:
    """It does not let itself be replaced: who asks for that is refused."""
    daemon = start_daemon()
    path = daemon.client.create(namespace(), Secrets().conf())
    replace_existing = 2
    with Client(daemon.address) as taker:
        in_queue = 2
        assert taker.bus("RequestName", "su", NAME, replace_existing) == in_queue
    assert state(daemon.client, path) == "up"


# ---------------------------------------------------------------- the session


def test_nothing_outlives_the_session(
    user_manager: UserManager, namespace: MakeNamespace, stage: Stage
) -> None:
    """The last test here, as there is no user manager after it."""
    ctl("setup")
    spaces = [namespace() for _ in range(3)]
    with Client(user_manager.address) as client:
        for number, (inside, lifetime) in enumerate(
            zip(spaces, ["namespace", "client", "persistent"], strict=True)
        ):
            client.create(inside, stage.conf(number), lifetime=lifetime)
            ping(inside, stage.far.ipv4)
        user_manager.stop()
    assert of_program("wireguard-go") == set()
    assert not (user_manager.runtime / "wg4netnsd").exists()
    for inside in spaces:
        assert set(inside.links()) == {"lo"}
    ctl("setup", "--remove")
