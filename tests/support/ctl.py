"""`wg4netnsctl` as users run it: in a pipe and on a terminal."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from support.bus import Client
from support.processes import PATIENCE, descendants, wait_for

PROGRAM = Path(sys.executable).parent / "wg4netnsctl"


class Ctl:
    """The installed wg4netnsctl on a bus, with its own configurations."""

    def __init__(self, address: str, directory: Path) -> None:
        self.configurations = directory / "config/wg4netnsd"
        self.configurations.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "DBUS_SESSION_BUS_ADDRESS": address,
            "XDG_CONFIG_HOME": str(directory / "config"),
        }

    def write(self, name: str, text: str) -> str:
        """Write a configuration and return its name, for the command line."""
        path = self.configurations / f"{name}.conf"
        path.write_text(text)
        path.chmod(0o600)
        return name

    def down_all(self, client: Client) -> None:
        """Take every tunnel down; one may be ending by itself, with its namespace."""
        for name, _, _ in client.tunnels():
            self.run("down", name)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end; the caller checks the status."""
        options = {"stdin": subprocess.DEVNULL, "timeout": 30} | options
        if "input" in options:
            del options["stdin"]
        return subprocess.run(
            [PROGRAM, *arguments], env=self.environment, capture_output=True, text=True, **options
        )

    def check(self, *arguments: str, **options: Any) -> str:
        """Run it and return its output; it must succeed."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: status {done.returncode}: {done.stderr}"
        return done.stdout

    def popen(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options
        return subprocess.Popen([PROGRAM, *arguments], env=self.environment, text=True, **options)

    def terminal(self, *arguments: str) -> "Terminal":
        return Terminal([str(PROGRAM), *arguments], self.environment)


@contextlib.contextmanager
def ctl_with_office(address: str, directory: Path, client: Client, conf: str) -> Iterator[Ctl]:
    """One with the configuration 'office'; at the end no tunnel may be left."""
    ctl = Ctl(address, directory)
    ctl.write("office", conf)
    yield ctl
    wait_for(lambda: client.tunnels() == [], "no tunnel is left")


class Terminal:
    """A terminal of 80 columns with a program in its foreground, the leader of its session."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.screen = ""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment | {"TERM": "xterm"})
        termios.tcsetwinsize(self._fd, (24, 80))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_screen(self, text: str) -> None:
        """Wait until the program has written this text."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.screen:
            assert time.monotonic() < deadline, f"no {text!r} on the terminal: {self.screen!r}"
            self._read(0.1)

    def wait_status(self) -> int:
        """Wait for the program's end and output; the status of waitstatus_to_exitcode()."""
        (_, status), *_ = wait_for(self._ended, "it has ended")
        self._read(0)
        return os.waitstatus_to_exitcode(status)

    def _ended(self) -> list[tuple[int, int]]:
        self._read(0)  # it may be waiting for room
        return [found for found in [os.waitpid(self.pid, os.WNOHANG)] if found[0]]

    def _read(self, patience: float) -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while select.select([self._fd], [], [], patience)[0]:
                data = os.read(self._fd, 65536)
                if not data:
                    return
                self.screen += data.decode(errors="replace")
                patience = 0

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def processes(self) -> set[int]:
        return {self.pid, *descendants(self.pid)}

    def close(self) -> None:
        self.hang_up()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # it was waited for
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
