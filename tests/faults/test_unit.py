"""What befalls the shipped unit: crashes, a bus that restarts, and what must live through them."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from support.bus import MANAGER, NAME, ROOT, Client, busctl
from support.buses import ON_BOTH
from support.daemon import PROGRAM
from support.installed import main_pid, wait_successor
from support.journal import Journal
from support.manager import UNIT, UserManager, changed, program
from support.namespaces import MakeNamespace
from support.processes import is_alive, wait_for
from support.stage import Stage

pytestmark = pytest.mark.distribution

IMPORTS = "import os, signal, subprocess, sys, time\nimport systemd.daemon as systemd\n"


def script(directory: Path, code: str, *arguments: str) -> list[str]:
    """The lines by which the unit runs this Python program."""
    path = directory / "program.py"
    path.write_text(IMPORTS + code)
    return program(sys.executable, str(path), *arguments)


# ---------------------------------------------------------------- all that it is for


@pytest.mark.parametrize("nested", [False, True])
def test_a_tunnel_works_under_it(
    unit: UserManager, namespace: MakeNamespace, stage: Stage, nested: bool
) -> None:
    inside = namespace(nested=nested)
    with Client(unit.address) as client:
        path = client.create(inside, stage.conf(0))
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv6)
        reader, writer = os.pipe()
        os.write(writer, stage.conf(0, MTU="1300").encode())
        os.close(writer)
        client.tunnel(path, "Reconfigure", "ha{sv}", reader, {})
        os.close(reader)
        assert inside.links()["wg0"]["mtu"] == 1300
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        client.tunnel(path, "Restart")
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv6)
        client.close_tunnel(path)
    assert set(inside.links()) == {"lo"}


# ---------------------------------------------------------------- crashes


def test_a_daemon_that_crashes_now_and_then_is_restarted_each_time(unit: UserManager) -> None:
    unit.systemctl("start", UNIT)
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL):
        pid = main_pid(unit)
        os.kill(pid, number)
        wait_successor(unit, pid)
        called = busctl(unit.address, "call", NAME, ROOT, MANAGER, "ListTunnels")
        assert called["data"] == [[]]
    assert unit.property(UNIT, "NRestarts") == "4"


@ON_BOTH
def test_a_call_meanwhile_waits(unit: UserManager) -> None:
    unit.systemctl("start", UNIT)
    pid = main_pid(unit)
    with Client(unit.address) as client:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not client.has_owner(), "its name is free")
        assert client.tunnels() == []
    assert main_pid(unit) not in (0, pid)


def test_a_crash_loop_ends(unit: UserManager, tmp_path: Path) -> None:
    with changed(unit, *script(tmp_path, "systemd.notify('READY=1')\nos.abort()")):
        unit.systemctl("start", UNIT, check=False)
        wait_for(lambda: unit.property(UNIT, "ActiveState") == "failed", "it has ended", 30)
        assert unit.property(UNIT, "Result") == "signal"
        assert unit.property(UNIT, "NRestarts") == "10"


INTERVAL = 5
MENDED = """
if not os.path.exists(sys.argv[0] + ".mended"):
    os.abort()
os.execv(sys.argv[1], sys.argv[1:])
"""


@ON_BOTH
def test_when_the_interval_is_over_a_call_starts_it_anew(unit: UserManager, tmp_path: Path) -> None:
    limits = ["[Unit]", f"StartLimitIntervalSec={INTERVAL}s", "StartLimitBurst=2"]
    crashing = script(tmp_path, MENDED, str(PROGRAM))
    with changed(unit, *crashing, *limits), Client(unit.address) as client:
        unit.systemctl("start", UNIT, check=False)
        wait_for(lambda: unit.property(UNIT, "ActiveState") == "failed", "it has ended", 30)
        over = time.monotonic() + INTERVAL
        (tmp_path / "program.py.mended").touch()
        # A call before that would hang: systemd 252 does not tell the bus that it refused.
        wait_for(lambda: time.monotonic() > over, "the interval is over")
        assert client.tunnels() == []


def test_a_daemon_that_hangs_is_replaced(unit: UserManager, tmp_path: Path) -> None:
    silent = script(tmp_path, "systemd.notify('READY=1')\nsignal.pause()")
    with changed(unit, *silent, "WatchdogSec=500ms"):
        unit.systemctl("start", UNIT)
        pid = main_pid(unit)
        wait_successor(unit, pid)
        assert not is_alive(pid)


def test_the_end_that_was_asked_for_is_no_crash(unit: UserManager) -> None:
    unit.systemctl("start", UNIT)
    os.kill(main_pid(unit), signal.SIGTERM)
    wait_for(lambda: unit.property(UNIT, "ActiveState") == "inactive", "it has ended")
    assert unit.property(UNIT, "Result") == "success"


# ---------------------------------------------------------------- what lives through them

STORE = """
had = len(systemd.listen_fds())
open(sys.argv[0] + ".had", "w").write(str(had))
if not had:
    import socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"])
        for number in range(4250 // 250):
            # Each opened anew: the store keeps no two that are the same by kcmp(2).
            fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(250)]
            told = f"FDSTORE=1\\nFDNAME=f{number}".encode()
            socket.send_fds(notify, [told], fds)
            # A user has 1024 on their way at most (unix(7)), and other tests pass some, too.
            reader, writer = os.pipe()
            socket.send_fds(notify, [b"BARRIER=1"], [writer])
            for fd in (*fds, writer):
                os.close(fd)
            os.read(reader, 1)  # to its end: systemd has them all
            os.close(reader)
systemd.notify("READY=1")
signal.pause()
"""


def test_the_store_keeps_the_descriptors_of_256_tunnels(unit: UserManager, tmp_path: Path) -> None:
    """All of them are handed over at the start, whatever the soft limit was."""
    had = tmp_path / "program.py.had"
    with changed(unit, *script(tmp_path, STORE)):
        unit.systemctl("start", UNIT)
        assert had.read_text() == "0"
        # Slow on a busy machine: systemd compares each one with all that it has.
        wait_for(lambda: unit.property(UNIT, "NFileDescriptorStore") == "4096", "all are kept", 60)
        pid = main_pid(unit)
        os.kill(pid, signal.SIGKILL)
        wait_successor(unit, pid, 30)
        assert had.read_text() == "4096"


CHILD = """
child = subprocess.Popen(["sleep", "1000"])
open(sys.argv[0] + ".child", "w").write(str(child.pid))
systemd.notify("READY=1")
signal.pause()
"""


def test_what_the_daemon_started_lives_on_without_it(unit: UserManager, tmp_path: Path) -> None:
    children = []
    with changed(unit, *script(tmp_path, CHILD)):
        unit.systemctl("start", UNIT)
        for end in (["kill", "--signal=SIGKILL", "--kill-who=main"], ["restart"], ["stop"]):
            pid = main_pid(unit)
            children.append(int((tmp_path / "program.py.child").read_text()))
            unit.systemctl(*end, UNIT)
            if end != ["stop"]:
                wait_successor(unit, pid)
        assert all(map(is_alive, children))
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_the_runtime_directory_lives_until_the_stop(unit: UserManager, tmp_path: Path) -> None:
    directory = unit.runtime / "wg4netnsd"
    with changed(unit, *script(tmp_path, "systemd.notify('READY=1')\nsignal.pause()")):
        unit.systemctl("start", UNIT)
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "kept").touch()
        pid = main_pid(unit)
        unit.systemctl("kill", "--signal=SIGKILL", UNIT)
        wait_successor(unit, pid)
        assert (directory / "kept").exists()
        unit.systemctl("restart", UNIT)
        assert (directory / "kept").exists()
        unit.systemctl("stop", UNIT)
        assert not directory.exists()


# ---------------------------------------------------------------- its surroundings


def test_in_a_user_namespace_of_its_own_it_does_not_start(unit: UserManager) -> None:
    journal = Journal()
    with changed(unit, "PrivateUsers=yes", "Restart=no"):
        unit.systemctl("start", UNIT, check=False)
        assert unit.property(UNIT, "Result") == "exit-code"
        assert unit.property(UNIT, "ExecMainStatus") == "78"
    (message,) = journal.messages(SYSLOG_IDENTIFIER="wg4netnsd")
    assert "child user namespace" in message


@ON_BOTH
@pytest.mark.parametrize("bus_unit", ["dbus.service", "dbus.socket"])
def test_it_is_back_when_the_bus_is(unit: UserManager, bus_unit: str) -> None:
    unit.systemctl("start", UNIT)
    pid = main_pid(unit)
    unit.systemctl("restart", bus_unit)
    wait_successor(unit, pid)
    with Client(unit.address) as client:
        wait_for(client.has_owner, "it owns its name")
        assert client.tunnels() == []
