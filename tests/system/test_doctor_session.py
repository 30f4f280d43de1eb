"""`wg4netnsctl doctor` with a faulty session, bus, unit or daemon."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bus import Bus
from support.daemon import Daemon
from support.doctor import ask, problems
from support.manager import SHIPPED, UNIT, UserManager, changed, drop_in, program
from support.processes import wait_for

pytestmark = pytest.mark.distribution

# ---------------------------------------------------------------- the session


def test_without_the_variable_of_a_login(installed: UserManager) -> None:
    unset = {"XDG_RUNTIME_DIR": "", "DBUS_SESSION_BUS_ADDRESS": ""}
    found = ask(env=unset)
    assert problems(found) == {"runtime-directory", "session-bus"}
    for each in ("activation", "user-manager", "unit", "daemon"):
        assert found[each].advice == "Fix 'session bus' first."
    # Its advice helps.
    script = "\n".join([*found["runtime-directory"].commands, 'exec "$@"'])
    assert problems(ask("sh", "-ec", script, "sh", env=unset)) == set()


def test_a_bus_that_is_gone(installed: UserManager, tmp_path: Path) -> None:
    env = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/bus"}
    found = ask(env=env)
    assert problems(found) == {"session-bus"}
    assert "No such file or directory" in found["session-bus"].found
    script = "\n".join([*found["session-bus"].commands, 'exec "$@"'])
    assert problems(ask("sh", "-ec", script, "sh", env=env)) == set()


def test_a_runtime_directory_that_is_not_ours(installed: UserManager) -> None:
    found = ask(env={"XDG_RUNTIME_DIR": "/run"})
    assert problems(found) == {"runtime-directory", "session-bus"}
    assert found["runtime-directory"].found == "/run belongs to another user, of uid 0"


def test_a_runtime_directory_that_is_open(bus: Bus, tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": bus.address}
    found = ask(env=env)["runtime-directory"]
    assert (found.status, found.commands) == ("note", [f"chmod 0700 {tmp_path}"])


def test_a_bus_that_hangs(bus: Bus) -> None:
    bus.process.send_signal(signal.SIGSTOP)
    found = ask(env={"DBUS_SESSION_BUS_ADDRESS": bus.address})
    bus.process.send_signal(signal.SIGCONT)
    assert found["session-bus"].status == "problem"
    assert found["session-bus"].advice
    assert found["session-bus"].advice.startswith("It hangs.")


def test_a_bus_without_systemd_and_a_daemon_that_hangs(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon()
    env = {"DBUS_SESSION_BUS_ADDRESS": daemon.address}
    found = ask(env=env)
    assert problems(found) == {"activation"}
    assert "no systemd on this bus" in found["user-manager"].found
    assert found["daemon"].status == "ok"
    daemon.process.send_signal(signal.SIGSTOP)
    hanging = ask(env=env)["daemon"]
    daemon.process.send_signal(signal.SIGCONT)
    assert hanging.status == "problem"
    assert "no answer within" in hanging.found


# ---------------------------------------------------------------- the unit


def test_what_is_not_installed(user_manager: UserManager) -> None:
    found = ask()
    assert problems(found) == {"activation", "unit"}
    for each in ("activation", "unit"):
        assert found[each].commands == ["wg4netnsctl setup"]


def test_a_unit_that_is_masked(installed: UserManager) -> None:
    installed.systemctl("mask", UNIT)
    found = ask()
    assert problems(found) == {"unit"}
    subprocess.run(shlex.split(found["unit"].commands[0]), check=True, capture_output=True)
    assert problems(ask()) == set()


def test_a_unit_that_systemd_can_not_read(installed: UserManager) -> None:
    content = SHIPPED.read_text()
    SHIPPED.write_text(content.replace("ExecStart=", "ExecReload="))
    installed.systemctl("daemon-reload")
    found = ask()["unit"]
    SHIPPED.write_text(content)
    installed.systemctl("daemon-reload")
    assert found.status == "problem"
    assert "can't be loaded" in found.found


@pytest.mark.parametrize("interpreter", [False, True])
def test_a_unit_whose_program_is_gone(
    installed: UserManager, tmp_path: Path, interpreter: bool
) -> None:
    command = tmp_path / "wg4netnsd"
    if interpreter:
        command.write_text(f"#!{tmp_path}/gone/bin/python\n")
        command.chmod(0o755)
    with changed(installed, *program(str(command))):
        found = ask()["unit"]
    missing = tmp_path / "gone/bin/python" if interpreter else command
    assert (found.status, found.found) == (
        "problem",
        f"it would start {missing}, which does not exist",
    )
    assert found.advice
    assert f"{UNIT}.d/test.conf" in found.advice


def test_a_unit_of_another_installation(installed: UserManager) -> None:
    with changed(installed, *program("/bin/true")):
        found = ask()
    assert problems(found) == set()
    assert found["unit"].status == "note"
    assert found["unit"].found.startswith("it starts /bin/true, not this installation's ")


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (78, r"it failed: exit-code, status 78"),
        (1, r"it failed: exit-code, status 1, after \d restarts"),
        (0, r"it was started so often that systemd refuses to for a minute"),
    ],
)
def test_a_unit_that_fails(installed: UserManager, status: int, found: str) -> None:
    failing = ["Type=exec", *program("/bin/sh", "-c", f"exit {status}")]
    installed.systemctl("enable", UNIT)  # systemd forgets an ended unit that nothing wants
    with drop_in(installed, "[Unit]", "StartLimitBurst=2", "[Service]", *failing):
        for _ in range(3):
            installed.systemctl("start", UNIT, check=False)
            wait_for(
                lambda: installed.property(UNIT, "ActiveState") in ("failed", "inactive"),
                "it has ended",
            )
        looked = ask()
    installed.systemctl("disable", UNIT)
    assert problems(looked) == {"unit"}
    assert re.fullmatch(found, looked["unit"].found)
    assert "systemctl --user reset-failed wg4netnsd" in looked["unit"].commands


def test_a_unit_that_has_changed(installed: UserManager) -> None:
    content = SHIPPED.read_text()
    installed.systemctl("start", UNIT)
    SHIPPED.write_text(f"{content}# changed\n")
    os.utime(SHIPPED, (2**31, 2**31))  # systemd compares times
    found = ask()["unit"]
    assert (found.status, found.commands) == ("note", ["systemctl --user daemon-reload"])
    SHIPPED.write_text(content)
    installed.systemctl("daemon-reload")
    assert ask()["unit"].status == "ok"


def test_a_daemon_of_another_version(installed: UserManager) -> None:
    code = (
        "import wg4netnsd; wg4netnsd.__version__ = '0.0.1'; "
        "from wg4netnsd.daemon import main; main()"
    )
    with changed(installed, *program(sys.executable, "-c", code)):
        installed.systemctl("start", UNIT)
        found = ask()["daemon"]
    assert found.status == "note"
    assert found.found.startswith("version 0.0.1, ")
    assert found.commands == ["systemctl --user restart wg4netnsd"]
