"""How the daemon starts, refuses to, and leaves the bus as it found it."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bus import TUNNEL, Bus, Client
from support.configs import Secrets
from support.daemon import PROGRAM, Daemon
from support.fds import pipe
from support.namespaces import MakeNamespace
from support.processes import wait_for


def refusal(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit status and the log of a daemon that does not start."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


def test_a_runtime_directory_with_other_things_is_left_alone(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.sock").write_text("not a socket")
    (tmp_path / "thesis/resolv.conf").write_text("nameserver 192.0.2.1\n")
    status, log = refusal("--runtime-dir", str(tmp_path), DBUS_SESSION_BUS_ADDRESS=bus.address)
    assert status == 78
    assert "not empty: expected a directory for wg4netnsd alone" in log
    assert (tmp_path / "thesis/chapter.sock").read_text() == "not a socket"
    assert (tmp_path / "thesis/resolv.conf").read_text() == "nameserver 192.0.2.1\n"


def test_a_runtime_directory_is_one_daemons(daemon: Daemon, bus: Bus) -> None:
    status, log = refusal(
        "--runtime-dir", str(daemon.directory), DBUS_SESSION_BUS_ADDRESS=bus.address
    )
    assert status == 78
    assert "another wg4netnsd uses it" in log


def test_what_a_killed_daemon_left_is_removed(
    start_daemon: Callable[..., Daemon], namespace: MakeNamespace, tmp_path: Path
) -> None:
    directory = str(tmp_path / "of-both")
    first = start_daemon("--runtime-dir", directory)
    path = first.client.create(namespace(), Secrets().conf())
    engine = first.client.get(path, "EnginePID")
    first.kill()
    wait_for(lambda: not Path(f"/proc/{engine}").exists(), "its engine ends with it")
    assert list(Path(directory).iterdir())
    (Path(directory) / "just-begun").mkdir()  # and killed before its socket was there
    second = start_daemon("--runtime-dir", directory)
    assert list(Path(directory).iterdir()) == []
    second.client.create(namespace(), Secrets().conf())


def test_a_name_that_is_taken(daemon: Daemon, bus: Bus, tmp_path: Path) -> None:
    status, log = refusal(
        "--runtime-dir", str(tmp_path / "own"), DBUS_SESSION_BUS_ADDRESS=bus.address
    )
    assert status == 78
    assert "org.wg4netns1 is owned already" in log
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("unix:path=/nonexistent/bus", "No such file or directory"),
        ("tcp:host=127.0.0.1,port=1", "tcp: not supported"),
        ("nonsense", "no session bus"),
    ],
)
def test_no_bus(address: str, told: str, tmp_path: Path) -> None:
    status, log = refusal("--runtime-dir", str(tmp_path / "own"), DBUS_SESSION_BUS_ADDRESS=address)
    assert status == 69
    assert told in log
    assert "Traceback" not in log


def test_a_bus_that_goes_away_ends_the_daemon(
    start_daemon: Callable[..., Daemon], namespace: MakeNamespace
) -> None:
    daemon = start_daemon()
    inside = namespace()
    daemon.client.create(inside, Secrets().conf())
    bus = daemon.client.bus("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus")
    daemon.client.close()
    os.kill(bus, signal.SIGTERM)
    assert daemon.process.wait(20) == 69
    assert set(inside.links()) == {"lo"}
    assert "Traceback" not in daemon.log


# ---------------------------------------------------------------- what it keeps of its callers


def test_what_it_holds_for_a_caller_is_counted(
    daemon: Daemon, client: Client, namespace: MakeNamespace
) -> None:
    """Else nobody would see what it forgets: after each test, `daemon` looks for that."""
    never = (["failed"], 2**64 - 1)
    with pipe() as (lease, _), pipe() as (config, _):
        path = client.create(namespace(), Secrets().conf(), lifetime="lease", lease=("h", lease))
        for call in (("WaitForState", "ast", never), ("Reconfigure", "ha{sv}", (config, {}))):
            client.connection.send(client.message(path, TUNNEL, *call))
        wait_for(
            lambda: all(
                getattr(daemon.footprint(), kind) > getattr(daemon.idle, kind)
                for kind in ("fds", "watched", "threads", "children", "files", "rules")
            ),
            "each count tells of it",
        )
        daemon.assert_idle()


def test_no_match_rule_outlives_its_call(
    daemon: Daemon, client: Client, namespace: MakeNamespace
) -> None:
    path = client.create(namespace(), Secrets().conf())
    client.tunnels()  # answered after the rule of the create has been removed
    before = daemon.footprint().rules
    for _ in range(20):
        assert client.tunnel(path, "WaitForState", "ast", ["up"], 0) == "up"
    wait_for(lambda: daemon.footprint().rules == before, "none is left")
