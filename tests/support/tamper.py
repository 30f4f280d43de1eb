"""Stands between systemd and the daemon:  tamper.py DIRECTORY COMMAND…

At each start it becomes COMMAND, unless something is planned for it in DIRECTORY: then it does that
with the fds that systemd hands over and fails, as a daemon that crashes early does, so that systemd
starts it once more. What a test plans is a function of its own module.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import systemd.daemon

from support.installed import HOME, crash, main_pid, wait_successor
from support.journal import Journal
from support.manager import UNIT, UNLIMITED, UserManager, drop_in


class Store:
    """What systemd holds, by its names; changed by telling systemd so."""

    def __init__(self) -> None:
        found = systemd.daemon.listen_fds_with_names().items()
        self.fds: dict[str, int] = {name: fd for fd, name in found}

    def add(self, name: str, fd: int) -> None:
        systemd.daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=[fd])

    def remove(self, name: str) -> None:
        systemd.daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def settle(self) -> None:
        """Return when systemd has done all that."""
        ours, theirs = os.pipe()
        systemd.daemon.notify("BARRIER=1", fds=[theirs])
        os.close(theirs)
        assert os.read(ours, 1) == b""


class Shelf:
    """One tunnel's part of it."""

    def __init__(self, store: Store, tunnel: str) -> None:
        self.store = store
        self.tunnel = tunnel

    def fd(self, kind: str) -> int:
        return self.store.fds[f"{kind}@{self.tunnel}"]

    def add(self, kind: str, fd: int) -> None:
        self.store.add(f"{kind}@{self.tunnel}", fd)

    def remove(self, kind: str) -> None:
        self.store.remove(f"{kind}@{self.tunnel}")

    def replace(self, kind: str, fd: int) -> None:
        self.remove(kind)
        self.add(kind, fd)

    def record(self) -> bytes:
        os.lseek(self.fd("record"), 0, os.SEEK_SET)
        with open(self.fd("record"), "rb", closefd=False) as file:
            return file.read()

    def rewrite(self, **changes: Any) -> None:
        """The record with other values."""
        self.replace("record", memory(json.dumps(json.loads(self.record()) | changes).encode()))


def memory(content: bytes) -> int:
    """A memfd with that content."""
    fd = os.memfd_create("written by a test")
    os.write(fd, content)
    return fd


# ---------------------------------------------------------------- the test's side


class Tampering:
    """The unit with this program in it."""

    def __init__(self, manager: UserManager, directory: Path) -> None:
        self.manager = manager
        self.plan = directory / "plan.json"

    def crash(self, do: Callable[..., object], *arguments: Any) -> None:
        """Kill the daemon, have `do(store, *arguments)` done, and return when the next serves."""
        self._plan(do, *arguments)
        journal = Journal()
        try:
            crash(self.manager)
        except AssertionError as error:
            said = "\n".join(journal.messages(f"--user-unit={UNIT}"))
            raise AssertionError(f"{error}:\n{said}") from None
        assert not self.plan.exists()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Kill the daemon; in the block there is none, after it the next one serves."""
        gate = self.plan.with_name("gate")
        os.mkfifo(gate)
        self._plan(wait_at, str(gate))
        before = main_pid(self.manager)
        self.manager.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", UNIT)
        with gate.open("w"):  # which is when the other end is open
            gate.unlink()
            yield
        wait_successor(self.manager, before)

    def _plan(self, do: Callable[..., object], *arguments: Any) -> None:
        file = sys.modules[do.__module__].__file__
        assert file
        self.plan.write_text(json.dumps([file, do.__name__, arguments]))

    def names(self) -> set[str]:
        """Those that systemd hands to the next daemon."""
        listed = self.plan.with_name("names.json")
        self.crash(list_names, str(listed))
        return set(json.loads(listed.read_text()))


def wait_at(store: Store, gate: str) -> None:
    Path(gate).read_text()


def list_names(store: Store, into: str) -> None:
    Path(into).write_text(json.dumps(list(store.fds)))


@contextmanager
def tampering(manager: UserManager, directory: Path) -> Iterator[Tampering]:
    tests = Path(__file__).parents[1]
    program = [sys.executable, "-m", "support.tamper", str(directory)]
    program = ["/usr/bin/env", f"PYTHONPATH={tests}", "PYTHONSAFEPATH=1", *program]
    with changed_unit(manager, lambda command: " ".join([*program, command])):
        yield Tampering(manager, directory)


@contextmanager
def changed_unit(
    manager: UserManager, command: Callable[[str], str] = str, *settings: str
) -> Iterator[None]:
    """The installed unit with another command and further settings of its [Service] section.

    It may be started as often as one likes, unless a setting says otherwise.
    """
    unit = (HOME / ".local/share/systemd/user" / UNIT).read_text()
    (now,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    changed = ["ExecStart=", f"ExecStart={command(now.removeprefix('ExecStart='))}", *settings]
    with drop_in(manager, *UNLIMITED, "[Service]", *changed):
        yield


# ---------------------------------------------------------------- systemd's side


def main() -> None:
    directory, *command = sys.argv[1:]
    plan = Path(directory) / "plan.json"
    if not plan.exists():
        del os.environ["PYTHONPATH"], os.environ["PYTHONSAFEPATH"]
        os.execv(command[0], command)  # the same process, so all that systemd gave is its
    file, name, arguments = json.loads(plan.read_text())
    sys.path.insert(0, str(Path(file).parent))
    store = Store()
    getattr(importlib.import_module(Path(file).stem), name)(store, *arguments)
    store.settle()
    plan.unlink()
    sys.exit("a test has tampered with the fd store")


if __name__ == "__main__":
    main()
