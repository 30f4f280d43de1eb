"""A real `systemd --user`, and what it knows about wg4netnsd."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import buses
from support.processes import PATIENCE, descendants, wait_for

UNIT = "wg4netnsd.service"
TEMPLATE = "wg4netns@.service"
SHIPPED = Path(os.environ["HOME"]) / ".local/share/systemd/user" / UNIT
"""Where `wg4netnsctl setup` puts it."""

_DROP_IN = Path(os.environ["HOME"]) / ".config/systemd/user" / f"{UNIT}.d/test.conf"

_UID = os.getuid()
CGROUP = Path(f"/sys/fs/cgroup/user.slice/user-{_UID}.slice/user@{_UID}.service")
"""The stage has given it to this user, next to the suite's own."""

_SYSTEMD = "/lib/systemd/systemd --user --log-target=console"


class UserManager:
    """`systemd --user` of this session, with the session bus that it starts."""

    def __init__(self, directory: Path, bus_program: str) -> None:
        self.runtime = Path(os.environ["XDG_RUNTIME_DIR"])
        if bus_program == buses.BROKER:
            buses.install_broker(self.runtime)
        self.address = f"unix:path={self.runtime}/bus"
        self.log_path = directory / "systemd.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                # $$ moves itself into the delegated cgroup, then becomes the manager.
                ["sh", "-c", f"echo $$ >{CGROUP}/cgroup.procs && exec {_SYSTEMD}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._is_running, "systemd --user runs")

    def _is_running(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()
        state = self.systemctl("is-system-running", check=False).strip()
        return state in ("running", "degraded") and (self.runtime / "bus").is_socket()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """What `systemctl --user` prints; it must succeed unless check is false."""
        done = subprocess.run(
            ["systemctl", "--user", *arguments],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0 or not check, f"systemctl {arguments}: {done.stderr}"
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def processes(self, unit: str) -> set[int]:
        """Those in the unit's cgroup."""
        group = self.property(unit, "ControlGroup")
        if not group:
            return set()
        procs = Path(f"/sys/fs/cgroup{group}/cgroup.procs")
        return {int(pid) for pid in procs.read_text().split()} if procs.exists() else set()

    def stop(self) -> None:
        """End it and everything it started."""
        family = descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            (CGROUP / "cgroup.kill").write_text("1")
            self.process.wait(10)
            raise AssertionError(f"systemd --user does not end: {family}") from None
        wait_for(lambda: not _populated(CGROUP), "the manager's cgroup is empty")
        shutil.rmtree(self.runtime / "systemd", ignore_errors=True)


def _populated(cgroup: Path) -> bool:
    return "populated 1" in (cgroup / "cgroup.events").read_text()


@contextmanager
def user_manager(bus_program: str = buses.DAEMON) -> Iterator[UserManager]:
    """One that runs until the block ends."""
    with tempfile.TemporaryDirectory() as directory:
        started = UserManager(Path(directory), bus_program)
        yield started
        started.stop()


@contextmanager
def installed(manager: UserManager) -> Iterator[UserManager]:
    """The manager with what `wg4netnsctl setup` installs, and without it afterwards."""
    ctl("setup")
    yield manager
    manager.systemctl("stop", UNIT)
    ctl("setup", "--remove")


@contextmanager
def drop_in(manager: UserManager, *lines: str) -> Iterator[None]:
    """The unit with these lines more, until the block ends; it has stopped by then."""
    _DROP_IN.parent.mkdir(parents=True)
    _DROP_IN.write_text("\n".join([*lines, ""]))
    manager.systemctl("daemon-reload")
    try:
        yield
    finally:
        manager.systemctl("stop", UNIT)
        _DROP_IN.unlink()
        _DROP_IN.parent.rmdir()
        manager.systemctl("daemon-reload")
        manager.systemctl("reset-failed")


UNLIMITED = ("[Unit]", "StartLimitIntervalSec=0")
"""For a drop-in: it is started as often as one likes."""


@contextmanager
def changed(manager: UserManager, *service: str) -> Iterator[None]:
    """The unit with these lines in its [Service], until the block ends."""
    with drop_in(manager, "[Service]", *service):
        yield


def program(*command: str) -> list[str]:
    """The lines by which the unit runs another one."""
    return ["ExecStart=", f"ExecStart={shlex.join(command)}"]


def ctl(*arguments: str) -> str:
    done = subprocess.run(["wg4netnsctl", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"wg4netnsctl {arguments}: {done.stdout}{done.stderr}"
    return done.stdout
