"""How `wg4netnsctl` fails: with an error, a hint what to do about it, and an exit status.

0        success
1        failed for another reason than the following
2        wrong arguments
3        no such tunnel
4        the name, the namespace or the interface is taken
5        the configuration can't be read or used
6        timed out
7        no session bus, or no daemon and none can be started
125      run, exec, shell: the command was not started
126      … it can't be executed
127      … it was not found
others   … the command's own, or 128 plus the number of the signal that ended it
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final, NamedTuple

from wg4netnsd import names

FAILED: Final = 1
NO_SUCH_TUNNEL: Final = 3
ALREADY_EXISTS: Final = 4
INVALID_CONFIG: Final = 5
TIMEOUT: Final = 6
UNREACHABLE: Final = 7
NOT_STARTED: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127

DOCTOR: Final = "'wg4netnsctl doctor' shows what this machine lacks"
LOG: Final = "'journalctl --user-unit wg4netnsd' shows the daemon's log"
SET_UP: Final = "'wg4netnsctl setup' lets the bus start the daemon"


class Failure(Exception):
    """An expected failure, in words for the user."""

    def __init__(self, text: str, hint: str = "", status: int = FAILED) -> None:
        super().__init__(text)
        self.hint = hint
        self.status = status


def complain(text: str, hint: str = "") -> None:
    """Print an error to standard error, and below it the hint."""
    import textwrap  # here, as only failures need it

    print(f"wg4netnsctl: {text}", file=sys.stderr)
    if hint:
        lines = textwrap.wrap(hint, 76, break_long_words=False, break_on_hyphens=False)
        print(textwrap.indent("\n".join(lines), "  "), file=sys.stderr)
    sys.stderr.flush()


class NotRunning(Failure):
    """No daemon runs, and the call must not start one, or can't."""


class _Known(NamedTuple):
    status: int
    hint: str


_KNOWN: Final = {
    f"{names.ERROR}.NoSuchTunnel": _Known(NO_SUCH_TUNNEL, "'wg4netnsctl list' shows the tunnels"),
    f"{names.ERROR}.AlreadyExists": _Known(
        ALREADY_EXISTS,
        "'wg4netnsctl down NAME' ends the other tunnel; --name gives this one another name",
    ),
    f"{names.ERROR}.InvalidConfig": _Known(INVALID_CONFIG, ""),
    f"{names.ERROR}.Timeout": _Known(
        TIMEOUT, "is the peer's Endpoint correct and reachable? --timeout allows more time"
    ),
    f"{names.ERROR}.TunFailed": _Known(FAILED, DOCTOR),
    f"{names.ERROR}.EngineFailed": _Known(FAILED, LOG),
    f"{names.ERROR}.ShuttingDown": _Known(
        UNREACHABLE, "try again: the next call starts a new daemon"
    ),
    f"{names.STANDARD_ERROR}.NoReply": _Known(UNREACHABLE, LOG),
}

_NOT_RUNNING: Final = {
    f"{names.STANDARD_ERROR}.ServiceUnknown": SET_UP,
    f"{names.STANDARD_ERROR}.NameHasNoOwner": DOCTOR,
}
"""dbus-broker also reports the second one when the daemon could not be started."""
_NOT_STARTED: Final = (
    f"{names.STANDARD_ERROR}.Spawn.",
    f"{names.STANDARD_ERROR}.TimedOut",
    "org.freedesktop.systemd1.",
)
"""Errors of dbus-daemon, and of systemd when the bus asks it to start the daemon."""


def of_bus(error_name: str, message: str) -> Failure:
    """The failure for an error that came over the bus."""
    text = without_name(error_name, message)
    if hint := _NOT_RUNNING.get(error_name):
        return NotRunning(text, hint, UNREACHABLE)
    if error_name.startswith(_NOT_STARTED):
        return _of_other_daemon() or Failure(text, DOCTOR, UNREACHABLE)
    known = _KNOWN.get(error_name, _Known(FAILED, ""))
    return Failure(text, known.hint, known.status)


def _of_other_daemon() -> Failure | None:
    """The failure if a daemon of the user's serves another bus: it has locked their directory."""
    directory = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "wg4netnsd")
    with contextlib.suppress(OSError), open("/proc/locks") as locks:
        status = os.stat(directory)
        device, inode = status.st_dev, status.st_ino
        place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
        for _, kind, _, _, pid, where, *_ in map(str.split, locks):
            if (kind, where) == ("FLOCK", place):
                text = f"another wg4netnsd of yours, process {pid}, serves another session bus"
                hint = (
                    f"'kill {pid}' ends it and its tunnels; or use its bus: is "
                    "DBUS_SESSION_BUS_ADDRESS set to what you want?"
                )
                return Failure(text, hint, UNREACHABLE)
    return None


def without_name(error_name: str, message: str) -> str:
    """The message without its error's short name, which the daemon adds for busctl's users."""
    return message.removeprefix(error_name.rpartition(".")[2] + ": ")


def of_kernel(error: OSError, hint: str = "", status: int = FAILED) -> Failure:
    """The failure for an error from the kernel: the operation or path, then the reason."""
    operation = f"{error.filename}: " if error.filename else ""
    return Failure(f"{operation}{error.strerror or error}", hint, status)
