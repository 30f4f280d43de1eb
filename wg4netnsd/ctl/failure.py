"""What `wg4netnsctl` says when it fails: what was wrong, what to do about it, and its exit status.

0        done
1        failed, for a reason that is none of the following
2        wrong usage
3        there is no such tunnel
4        there is one already: of that name, of that namespace, or such an interface
5        the configuration can't be read, or not be honoured
6        the time was over
7        neither is there a daemon, nor can one be started
125      run, exec, shell: the command was not started
126      it can't be executed
127      it is not to be found
others   the command's own; 128 and the signal's number where a signal ended it
"""

from __future__ import annotations

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

DOCTOR: Final = "'wg4netnsctl doctor' tells what this machine lacks"
LOG: Final = "'journalctl --user-unit wg4netnsd' has more"
SET_UP: Final = "'wg4netnsctl setup' makes the bus start the daemon"


class Failure(Exception):
    """An expected failure, in words for people."""

    def __init__(self, text: str, hint: str = "", status: int = FAILED) -> None:
        super().__init__(text)
        self.hint = hint
        self.status = status


def complain(text: str, hint: str = "") -> None:
    """On standard error: what was wrong, and beneath it what to do."""
    import textwrap  # which nothing needs that goes well

    print(f"wg4netnsctl: {text}", file=sys.stderr)
    if hint:
        lines = textwrap.wrap(hint, 76, break_long_words=False, break_on_hyphens=False)
        print(textwrap.indent("\n".join(lines), "  "), file=sys.stderr)
    sys.stderr.flush()


class NotRunning(Failure):
    """There is no daemon, and it was not to be started, or can't be."""


class _Known(NamedTuple):
    status: int
    hint: str


_KNOWN: Final = {
    f"{names.ERROR}.NoSuchTunnel": _Known(
        NO_SUCH_TUNNEL, "'wg4netnsctl list' shows those that there are"
    ),
    f"{names.ERROR}.AlreadyExists": _Known(
        ALREADY_EXISTS, "--name gives it another name, 'wg4netnsctl down NAME' ends the other one"
    ),
    f"{names.ERROR}.InvalidConfig": _Known(INVALID_CONFIG, ""),
    f"{names.ERROR}.Timeout": _Known(
        TIMEOUT, "is the peer's Endpoint right, and to be reached? --timeout gives it longer"
    ),
    f"{names.ERROR}.TunFailed": _Known(FAILED, DOCTOR),
    f"{names.ERROR}.EngineFailed": _Known(FAILED, LOG),
    f"{names.ERROR}.ShuttingDown": _Known(UNREACHABLE, "the next call starts another daemon"),
    f"{names.STANDARD_ERROR}.NoReply": _Known(UNREACHABLE, LOG),
}

_NOT_RUNNING: Final = {
    f"{names.STANDARD_ERROR}.ServiceUnknown": SET_UP,
    f"{names.STANDARD_ERROR}.NameHasNoOwner": DOCTOR,
}
"""The second is also how dbus-broker says that starting the daemon has failed."""
_NOT_STARTED: Final = (
    f"{names.STANDARD_ERROR}.Spawn.",
    f"{names.STANDARD_ERROR}.TimedOut",
    "org.freedesktop.systemd1.",
)
"""Of dbus-daemon itself, and of systemd, which it may ask."""


def of_bus(error_name: str, message: str) -> Failure:
    """Of an error that came over the bus."""
    text = without_name(error_name, message)
    if hint := _NOT_RUNNING.get(error_name):
        return NotRunning(text, hint, UNREACHABLE)
    if error_name.startswith(_NOT_STARTED):
        return Failure(text, DOCTOR, UNREACHABLE)
    known = _KNOWN.get(error_name, _Known(FAILED, ""))
    return Failure(text, known.hint, known.status)


def without_name(error_name: str, message: str) -> str:
    """A message begins with its error's short name, for busctl's sake."""
    return message.removeprefix(error_name.rpartition(".")[2] + ": ")


def of_kernel(error: OSError, hint: str = "", status: int = FAILED) -> Failure:
    """Of a refusal by the kernel: the operation or path, then its reason."""
    what = f"{error.filename}: " if error.filename else ""
    return Failure(f"{what}{error.strerror or error}", hint, status)
