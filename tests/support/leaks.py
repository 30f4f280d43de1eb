"""Where a key could turn up that nobody may see, and the search for it."""

import base64
import contextlib
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from support import bus, configs, stage
from support.daemon import Daemon

Found = Iterator[tuple[str, bytes]]
"""Pieces of a place, each with a name for people."""

WINDOW = 20
"""Characters of a key that give it away: half of it, as one that was mangled is a secret still."""

RAW_WINDOW = 16  # bytes

PIECE = 16 << 20
"""Bytes of a file that are searched at a time."""


class Needles:
    """Keys, in whatever shape they may be written: base64, hex, or as they are."""

    def __init__(self, keys: Iterable[str] = (), window: int = WINDOW) -> None:
        self._window = window
        self._run = re.compile(rb"[A-Za-z0-9+/]{%d,}" % window)
        self._text: dict[bytes, str] = {}
        self._raw: dict[bytes, str] = {}
        self.count = 0
        for key in keys:
            self.add(key)

    def add(self, key: str) -> None:
        """Its name is what a finding may say of it."""
        self.count += 1
        raw = base64.b64decode(key)
        name = f"key {self.count}"
        for shape, text in (("base64", key.rstrip("=")), ("hex", raw.hex())):
            for at in range(len(text) - self._window + 1):
                self._text[text[at : at + self._window].encode()] = f"{name} as {shape}"
        for at in (0, len(raw) - RAW_WINDOW):
            self._raw[raw[at : at + RAW_WINDOW]] = f"{name} as bytes"

    def find(self, data: bytes) -> set[str]:
        """Which of them are in it, and how."""
        found = set()
        for run in self._run.finditer(data):
            exact, lower = run[0], run[0].lower()
            for at in range(len(exact) - self._window + 1):
                for window in (exact[at : at + self._window], lower[at : at + self._window]):
                    if window in self._text:
                        found.add(self._text[window])
        if not data.isascii():
            found |= {name for raw, name in self._raw.items() if raw in data}
        return found

    def search(self, place: Iterable[tuple[str, bytes]]) -> list[str]:
        return [f"{where}: {what}" for where, data in place for what in sorted(self.find(data))]


class Moment:
    """Now, to tell older files from what was written since: by ctime, which nobody can set."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:  # whose clock is up to 10 ms late
            self._ctime_ns = os.fstat(file.fileno()).st_ctime_ns
        self._boot_ns = _boot_ns()

    def is_after(self, file: os.stat_result) -> bool:
        """Whether the file was last written, renamed or linked before it."""
        set_back_ns = max(0, self._boot_ns - _boot_ns())
        return file.st_ctime_ns < self._ctime_ns - set_back_ns


def _boot_ns() -> int:
    """When the machine was booted, which changes only when somebody sets the clock."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Session:
    """All keys of this run of the suite, and what clients and logs have been told in it."""

    began: Moment

    def __init__(self) -> None:
        self.needles = Needles()
        self.messages: list[str] = []
        self.logs: dict[str, bytes] = {}

    def begin(self) -> None:
        """From now on whatever makes a key or an error, or ends a daemon, is followed."""
        self.began = Moment()
        self._follow(configs.Secrets, "new", lambda made, *_: self.needles.add(made))
        self._follow(stage, "_wg", self._wg)
        for error in (bus.DBusError, bus.CommandFailed):
            self._follow(error, "__init__", self._error)
        for end in ("stop", "kill"):
            self._follow(Daemon, end, lambda _, daemon: self.keep_log(daemon))
        if found := stage.read():
            for client in found.clients:
                self.needles.add(client.private_key)
                self.needles.add(client.preshared_key)

    @staticmethod
    def _follow(owner: Any, name: str, heard: Any) -> None:
        original = getattr(owner, name)

        def followed(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            heard(result, *args)
            return result

        setattr(owner, name, followed)

    def _wg(self, made: str, command: str, *_: object) -> None:
        if command in ("genkey", "genpsk"):
            self.needles.add(made)

    def _error(self, _: object, error: Exception, *args: object) -> None:
        self.messages.append(" ".join(map(str, (*error.args, *args))))

    def keep_log(self, daemon: Daemon) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has been stopped, and kept, before
            self.logs[f"{daemon.log_path} of {daemon.pid}"] = daemon.log_path.read_bytes()


SESSION = Session()


# ---------------------------------------------------------------- the places


def messages(session: Session) -> Found:
    for message in session.messages:
        yield f"error '{message[:20]}…'", message.encode()


def logs(session: Session) -> Found:
    yield from session.logs.items()


def journal() -> Found:
    """All fields of all entries that this user may read."""
    command = ["journalctl", "--quiet", "--all", "--output=export"]
    exported = subprocess.run(command, capture_output=True, timeout=60).stdout
    for entry in exported.split(b"\n\n__CURSOR="):
        yield "journal", entry


def processes() -> Found:
    """What /proc shows of each to this user."""
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ", "comm", "maps", "mountinfo"):
            with contextlib.suppress(OSError):  # it has ended, or is closed to us
                yield f"{entry}/{name}", (entry / name).read_bytes()
        with contextlib.suppress(OSError):
            for fd in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield str(fd), os.readlink(fd).encode()
    yield "/proc/net/unix", Path("/proc/net/unix").read_bytes()


def files(*inputs: Path, since: Moment | None = None) -> Found:
    """All that was written since the session began and this user may read, wherever anybody could
    have written; not the suite's own inputs."""
    roots = ["/tmp", "/var/tmp", "/run", "/dev/shm", "/var/crash", "/var/lib/systemd/coredump"]
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    cores = [os.path.dirname(pattern)] if pattern.startswith("/") else []
    seen = {str(each) for each in inputs}
    for root in dict.fromkeys([*roots, *cores, os.environ["HOME"], os.getcwd()]):
        for path in _walk(root, seen, since or SESSION.began):
            seen.add(path)
            yield path, os.fsencode(os.path.basename(path))
            with contextlib.suppress(OSError), open(path, "rb") as file:
                for piece in _pieces(file):
                    yield path, piece


def _walk(root: str, without: set[str], since: Moment) -> Iterator[str]:
    for directory, inner, names in os.walk(root):
        inner[:] = [name for name in inner if os.path.join(directory, name) not in without]
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if path in without or not stat.S_ISREG(status.st_mode) or since.is_after(status):
                    continue
                yield path


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Each with the last one's end before it, so that what a piece cuts is whole in the next."""
    end = b""
    while read := file.read(PIECE):
        yield end + read
        end = read[-2 * WINDOW :]


def captured(captures: Sequence[Path]) -> Found:
    for path in captures:
        yield str(path), path.read_bytes()


def everywhere(session: Session, inputs: Iterable[Path]) -> Found:
    yield from messages(session)
    yield from logs(session)
    yield from journal()
    yield from processes()
    yield from files(*inputs)
