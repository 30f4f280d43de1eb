"""Errors and hints when the bus can't start the daemon. Each bus has its own wording."""

from pathlib import Path

import pytest

from support.buses import BROKER, ON_BOTH
from support.configs import Secrets
from support.ctl import Ctl
from support.manager import UNIT, UserManager, changed, program

SET_UP = "'wg4netnsctl setup' lets the bus start the daemon"
DOCTOR = "'wg4netnsctl doctor' shows what this machine lacks"


def assert_not_started(manager: UserManager, directory: Path, reason: str, hint: str) -> None:
    ctl = Ctl(manager.address, directory)
    done = ctl.run("up", ctl.write("work", Secrets().conf()))
    assert (done.returncode, done.stdout) == (7, "")
    assert reason in done.stderr
    assert done.stderr.endswith(f"\n  {hint}\n")


@ON_BOTH
def test_it_was_not_set_up(user_manager: UserManager, bus_program: str, tmp_path: Path) -> None:
    reason = "not activatable" if bus_program == BROKER else "not provided by any .service files"
    assert_not_started(user_manager, tmp_path, reason, SET_UP)


@ON_BOTH
def test_its_unit_is_masked(installed: UserManager, tmp_path: Path) -> None:
    installed.systemctl("mask", "--runtime", UNIT)
    assert_not_started(installed, tmp_path, " masked", DOCTOR)
    installed.systemctl("unmask", "--runtime", UNIT)


@pytest.mark.parametrize("bus_program", [BROKER], indirect=True)
def test_it_fails_at_its_start(installed: UserManager, tmp_path: Path) -> None:
    """systemd 252 does not tell dbus-daemon, which times out after two minutes."""
    with changed(installed, *program("/bin/false"), "Restart=no"):
        assert_not_started(installed, tmp_path, "startup job failed", DOCTOR)
