"""How the programs start once `wg4netnsctl setup` was run: Python alone, and quiet at a Ctrl-C."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.depth import depth
from support.installed import main_pid
from support.manager import UserManager, ctl
from support.processes import program

pytestmark = pytest.mark.distribution

PROGRAM = Path(str(shutil.which("wg4netnsctl")))


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, str]:
    """An environment by which another Python, with other modules, would run."""
    for name in ("jeepney", "dbus_next", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("print('a foreign module')\nraise SystemExit(9)\n")
    return {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/opt/none", "PYTHONSAFEPATH": ""}


def test_the_client_is_isolated(installed: UserManager, foreign: dict[str, str]) -> None:
    done = subprocess.run(
        ["wg4netnsctl", "list"], env=os.environ | foreign, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_so_is_the_daemon(installed: UserManager, foreign: dict[str, str]) -> None:
    """A session may have these variables for everything that it starts."""
    lines = [f"{name}={value}" for name, value in foreign.items()]
    installed.systemctl("set-environment", *lines)
    try:
        with Client(installed.address) as client:
            assert client.tunnels() == []
    finally:
        installed.systemctl("unset-environment", *foreign)
    assert f"PYTHONHOME={foreign['PYTHONHOME']}".encode() in environ(main_pid(installed))


def environ(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.fixture
def again(installed: UserManager) -> Iterator[None]:
    """setup, for a test that has undone it."""
    yield
    ctl("setup")


def test_removal_restores_the_scripts(installed: UserManager, again: None) -> None:
    isolated = PROGRAM.read_text()
    assert isolated.startswith("#!/usr/bin/env -S --block-signal=INT /")
    assert f"restored {PROGRAM}\n" in ctl("setup", "--remove")
    assert PROGRAM.read_text().split("\n")[1:] == isolated.split("\n")[1:]
    assert f"isolated {PROGRAM}" in ctl("setup")
    assert f"isolated {PROGRAM}" not in ctl("setup")
    assert PROGRAM.read_text() == isolated


def test_it_has_its_name(installed: UserManager) -> None:
    with subprocess.Popen(["wg4netnsctl", "monitor"], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert program(running.pid) == "wg4netnsctl"
        running.terminate()


def test_control_c_at_any_time(installed: UserManager) -> None:
    """Nothing but the status, of a process that the signal has ended: a script ends, too."""
    statuses = set()
    for tenths in range(0, 700, depth(7, 1)):
        command = ["wg4netnsctl", "show", "nothing"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            time.sleep(tenths / 10_000)
            running.send_signal(signal.SIGINT)
            _, error = running.communicate()
        assert "Traceback" not in error and "KeyboardInterrupt" not in error, error
        assert running.returncode in (-signal.SIGINT, 3), error
        statuses.add(running.returncode)
    assert -signal.SIGINT in statuses
