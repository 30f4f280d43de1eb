"""wg4netnsd as a process of the test's: started, watched for leaks, stopped."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from support.bus import NAME, Bus, Client, DBusError
from support.processes import (
    children,
    children_or_none,
    open_fds,
    program,
    wait_for,
    watched_fds,
)

SOON = 4.0
"""Seconds for what the daemon does as it is told of an event. What nobody tells it, it finds by
itself, every 5 s; or a limit of its own ends what holds it up, the first after 5 s."""

PARENTS = ("wg4netns-agent", "wg4netns-files")
"""The daemon's children that have one of their own in reserve."""

PROGRAM = Path(sys.executable).parent / "wg4netnsd"


@dataclass(frozen=True)
class Footprint:
    """What the daemon holds. Idle, it is always the same."""

    fds: int
    watched: int
    """Descriptors that its event loop, or an epoll of a lease's own, waits for."""
    threads: int
    children: int
    grandchildren: int
    """Those of the agent, and the file processes."""
    files: frozenset[str]
    rules: Counter[str]
    """The match rules that the bus keeps for it, where the bus counts them."""


class Daemon:
    """The installed wg4netnsd on a bus, with a runtime directory of its own."""

    def __init__(self, bus: Bus, directory: Path, *arguments: str, **environment: str) -> None:
        self.address = bus.address
        self._rules = bus.rules
        self.runtime = directory / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.log_path = directory / "wg4netnsd.log"
        mine = {
            "DBUS_SESSION_BUS_ADDRESS": bus.address,
            "XDG_RUNTIME_DIR": str(self.runtime),
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [PROGRAM, *arguments],
                env=os.environ | mine | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.client = Client(bus.address)
        try:
            wait_for(self._is_ready, "wg4netnsd owns its name")
            self._unique_name = self.client.bus("GetNameOwner", "s", NAME)
            wait_for(
                self._is_prepared, "there is a child for the next request, and for the next file"
            )
            self.idle = wait_for(self._settled_footprint, "the daemon has come to rest")
        except BaseException:
            self.kill()
            raise

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"wg4netnsd ended:\n{self.log}"
        return self.client.has_owner()

    def _is_prepared(self) -> bool:
        parents = [pid for pid in children(self.pid) if program(pid) in PARENTS]
        return len(parents) == len(PARENTS) and all(map(children_or_none, parents))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to its standard error so far."""
        return self.log_path.read_text(errors="replace")

    def assert_no_defect(self, since: int = 0) -> None:
        """Fails if it has logged a defect of its own after so many characters of its log."""
        told = self.log[since:]
        assert "internal error" not in told
        assert "Traceback" not in told, told[told.index("Traceback") :][:4000]

    @property
    def directory(self) -> Path:
        """Where it keeps its sockets while it runs."""
        return self.runtime / "wg4netnsd"

    def engines(self) -> set[int]:
        """Its wireguard-go processes, those that wait for a tunnel too."""
        return {pid for pid in children(self.pid) if program(pid) == "wireguard-go"}

    @property
    def agent(self) -> int:
        (agent,) = [pid for pid in children(self.pid) if program(pid) == "wg4netns-agent"]
        return agent

    def footprint(self) -> Footprint:
        family = children(self.pid)
        return Footprint(
            fds=len(open_fds(self.pid)),
            watched=len(watched_fds(self.pid)),
            threads=len(list(Path(f"/proc/{self.pid}/task").iterdir())),
            children=len(family),
            grandchildren=sum(len(children_or_none(child)) for child in family),
            files=frozenset(
                str(each.relative_to(self.runtime)) for each in self.runtime.rglob("*")
            ),
            rules=self._rules.of(self._unique_name) if self._rules else Counter(),
        )

    def _settled_footprint(self) -> Footprint | None:
        """The footprint, unless it was taken amid something, such as an engine's start: while the
        daemon is at that, it does not answer."""
        before = self.footprint()
        self.client.tunnels()
        return before if self.footprint() == before else None

    def close_tunnels(self, *but: str) -> None:
        """Close all of them, except those of these paths."""
        for _, path, _ in self.client.tunnels():
            if path in but:
                continue
            try:
                self.client.close_tunnel(path)
            except DBusError as error:  # it may end by itself meanwhile
                if error.short_name not in ("NoSuchTunnel", "UnknownObject"):
                    raise

    def assert_idle(self) -> None:
        """Close what a test has left open; then nothing of it may remain."""
        self.close_tunnels()
        try:
            wait_for(lambda: self.footprint() == self.idle, "the daemon is as it was")
        except AssertionError:
            now = self.footprint()
            raise AssertionError(
                f"the daemon leaks:\n idle: {self.idle}\n  now: {now}\n{open_fds(self.pid)}"
                f"\n{self.log[-2000:]}"
            ) from None

    def stop(self) -> None:
        """SIGTERM; it must end well and leave nothing behind."""
        family = children(self.pid) if self.process.poll() is None else set()
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM does not end wg4netnsd:\n{self.log}") from None
        assert status == 0, f"wg4netnsd ended with {status}:\n{self.log}"
        wait_for(lambda: not any(_exists(pid) for pid in family), "its children have ended")
        left = sorted(self.runtime.rglob("*"))
        assert not left, f"wg4netnsd left {left}"

    def stop_if_running(self) -> None:
        """Unless a test has seen its end: one that ended unseen was not to."""
        if self.process.returncode is None:
            self.stop()

    def kill(self) -> None:
        """SIGKILL, for a test that wants that, or to clean up."""
        self.client.close()
        self.process.kill()
        self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
