"""wg4netnsd as its user installs it: by `wg4netnsctl setup`, for a real `systemd --user`."""

import os
from pathlib import Path

from support.bus import Client, DBusError
from support.manager import UNIT, UserManager
from support.processes import of_program, wait_for

HOME = Path(os.environ["HOME"])
INSTALLED = [HOME / ".local/share/systemd/user", HOME / ".local/share/dbus-1/services"]


def files() -> dict[str, str]:
    """What is installed, by name."""
    return {
        each.name: each.read_text()
        for directory in INSTALLED
        if directory.is_dir()
        for each in directory.rglob("*")
        if each.is_file()
    }


def assert_nothing_left(manager: UserManager) -> None:
    assert manager.property(UNIT, "ActiveState") == "inactive"
    assert manager.processes(UNIT) == set()
    assert of_program("wireguard-go") == set()
    assert not (manager.runtime / "wg4netnsd").exists()


def main_pid(manager: UserManager) -> int:
    return int(manager.property(UNIT, "MainPID"))


def wait_successor(manager: UserManager, before: int, timeout: float = 20) -> int:
    """Return the pid of the daemon that has come after the one with pid `before`, and serves."""

    def successor() -> int:
        pid = main_pid(manager)
        active = manager.property(UNIT, "ActiveState") == "active"
        return pid if active and pid not in (0, before) else 0

    return wait_for(successor, "systemd starts it again", timeout)


def crash(manager: UserManager, signal: str = "SIGKILL") -> int:
    """End the daemon by a signal; the pid of its successor, once that serves."""
    before = main_pid(manager)
    manager.systemctl("kill", "--kill-who=main", f"--signal={signal}", UNIT)
    return wait_successor(manager, before)


def state(client: Client, path: str) -> str:
    """The tunnel's; empty if there is no such tunnel."""
    try:
        return str(client.get(path, "State"))
    except DBusError as error:
        if error.short_name != "UnknownObject":
            raise
        return ""
