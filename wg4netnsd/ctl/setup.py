"""Put the unit and the activation files of this installation in place for its user.

    ~/.local/share/systemd/user/wg4netnsd.service
    ~/.local/share/dbus-1/services/org.wg4netns1.service

with the path of the very `wg4netnsd` that belongs to this installation, be it in a virtual
environment, pipx's or the system's.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import sys
from argparse import Namespace as Arguments
from pathlib import Path
from typing import Final, NamedTuple

from wg4netnsd import contract, names
from wg4netnsd.errors import Failed

PACKAGED_PATH: Final = "/usr/bin/wg4netnsd"  # as contrib/ has it, for distributions
UNIT: Final = "wg4netnsd.service"

_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Placed(NamedTuple):
    """A file that `setup` writes."""

    path: Path
    content: str


def run(arguments: Arguments) -> None:
    for line in remove() if arguments.remove else install():
        print(line)


def install() -> list[str]:
    """Write what is missing or outdated, and have the managers notice. Returns what was done."""
    daemon = find_daemon()
    done = []
    for placed in _files(daemon):
        if placed.path.is_file() and placed.path.read_text() == placed.content:
            done.append(f"unchanged {placed.path}")
            continue
        placed.path.parent.mkdir(parents=True, exist_ok=True)
        placed.path.write_text(placed.content)
        done.append(f"wrote {placed.path}")
    return done + _reload()


def remove() -> list[str]:
    """Stop the daemon, delete what install() wrote. Returns what was done."""
    done = []
    if _succeeds("systemctl", "--user", "--quiet", "stop", UNIT):
        done.append(f"stopped {UNIT}")
    if pid := _running_daemon():  # on a bus without systemd
        os.kill(pid, signal.SIGTERM)
        done.append(f"told process {pid} to stop")
    for placed in _files(PACKAGED_PATH):
        if placed.path.exists():
            placed.path.unlink()
            done.append(f"removed {placed.path}")
    return done + _reload()


def find_daemon() -> str:
    """The absolute path of this installation's `wg4netnsd`. Raises Failed."""
    try:
        recorded = importlib.metadata.files("wg4netnsd") or []
    except importlib.metadata.PackageNotFoundError:
        recorded = []
    candidates = [Path(str(f.locate())) for f in recorded if f.match("bin/wg4netnsd")]
    candidates.append(Path(sys.argv[0]).absolute().with_name("wg4netnsd"))
    if on_path := shutil.which("wg4netnsd"):
        candidates.append(Path(on_path))
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return os.path.normpath(candidate)
    raise Failed("this installation's wg4netnsd is not to be found: is it installed whole?")


def _files(daemon: str) -> list[Placed]:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    unit = contract.resource(f"systemd/{UNIT}").decode()
    activation = contract.resource(f"dbus/{names.BUS_NAME}.service").decode()
    return [
        Placed(data / "systemd/user" / UNIT, unit.replace(PACKAGED_PATH, _unit_quote(daemon))),
        Placed(
            data / "dbus-1/services" / f"{names.BUS_NAME}.service",
            activation.replace(PACKAGED_PATH, shlex.quote(daemon)),
        ),
    ]


def _unit_quote(path: str) -> str:
    """For ExecStart=: systemd.service(5), "Command lines"."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(path) & set(" \t\"'\\") else escaped


def _running_daemon() -> int | None:
    """Its process, on the bus that we are on."""
    method = [*_BUS, "GetConnectionUnixProcessID", "s", names.BUS_NAME]
    answer = _output("busctl", "--user", "call", *method)  # "u 1234"
    return int(answer.split()[1]) if answer else None


def _reload() -> list[str]:
    """Neither manager need be there: both read the files when they start."""
    done = []
    if _succeeds("systemctl", "--user", "--quiet", "daemon-reload"):
        done.append("reloaded the user manager")
    if _succeeds("busctl", "--user", "--quiet", "call", *_BUS, "ReloadConfig"):
        done.append("reloaded the session bus")
    return done


def _succeeds(*command: str) -> bool:
    return _output(*command) is not None


def _output(*command: str) -> str | None:
    """What it prints; None if it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return None
