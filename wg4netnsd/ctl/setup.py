"""Put this installation's units, activation file, completions and manual pages in place.

    ~/.local/share/systemd/user/wg4netnsd.service
    ~/.local/share/systemd/user/wg4netns@.service
    ~/.local/share/dbus-1/services/org.wg4netns1.service
    ~/.local/share/{bash-completion/completions,fish/vendor_completions.d,zsh/site-functions}/…
    ~/.local/share/man/…

with the paths of the very `wg4netnsd` and `wg4netnsctl` that belong to this installation, be it in
a virtual environment, pipx's or the system's.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from wg4netnsd import names
from wg4netnsd.bus import contract
from wg4netnsd.ctl import xdg
from wg4netnsd.errors import Failed

PROGRAMS: Final = ("wg4netnsd", "wg4netnsctl")
PACKAGED: Final = "/usr/bin"  # where contrib/ has them, for distributions
UNIT: Final = "wg4netnsd.service"
TEMPLATE: Final = "wg4netns@.service"
INSTANCES: Final = "wg4netns@*.service"

_ZSH: Final = "zsh/site-functions"
_COMPLETIONS: Final = (
    ("wg4netnsctl.bash", "bash-completion/completions/wg4netnsctl"),
    ("wg4netnsctl.fish", "fish/vendor_completions.d/wg4netnsctl.fish"),
    ("_wg4netnsctl", f"{_ZSH}/_wg4netnsctl"),
)


class Placed(NamedTuple):
    """A file that `setup` writes."""

    path: Path
    content: str


def run(arguments: Arguments) -> None:
    for line in remove() if arguments.remove else install():
        print(line)


def install() -> list[str]:
    """Write what is missing or outdated, and have the managers notice. Returns what was done."""
    programs = {program: find(program) for program in PROGRAMS}
    done = []
    for placed in _files(programs):
        if placed.path.is_file() and placed.path.read_text() == placed.content:
            done.append(f"unchanged {placed.path}")
            continue
        placed.path.parent.mkdir(parents=True, exist_ok=True)
        placed.path.write_text(placed.content)
        done.append(f"wrote {placed.path}")
    return done + _reload() + _succession() + _hint_at_zsh()


def remove() -> list[str]:
    """Stop what runs, delete what install() wrote. Returns what was done."""
    done = []
    for instance in _instances():
        _succeeds("systemctl", "--user", "--quiet", "stop", instance)
        _succeeds("systemctl", "--user", "--quiet", "reset-failed", instance)
        done.append(f"stopped {instance}")
    if _succeeds("systemctl", "--user", "--quiet", "stop", UNIT):
        done.append(f"stopped {UNIT}")
    if pid := _running_daemon():  # on a bus without systemd
        os.kill(pid, signal.SIGTERM)
        done.append(f"told process {pid} to stop")
    for path in (*_enabled(), *(placed.path for placed in _files({}))):
        if path.is_symlink() or path.exists():
            path.unlink()
            done.append(f"removed {path}")
    return done + _reload()


def find(program: str) -> str:
    """The absolute path of this installation's `program`. Raises Failed."""
    candidates = _recorded(f"bin/{program}")
    candidates.append(Path(sys.argv[0]).absolute().with_name(program))
    if on_path := shutil.which(program):
        candidates.append(Path(on_path))
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return os.path.normpath(candidate)
    raise Failed(f"this installation's {program} is not to be found: is it installed whole?")


def _recorded(pattern: str) -> list[Path]:
    """Those of this installation's files, wherever pip has put them."""
    try:
        recorded = importlib.metadata.files("wg4netnsd") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(os.path.normpath(str(f.locate()))) for f in recorded if f.match(pattern)]


def _files(programs: Mapping[str, str]) -> list[Placed]:
    """With the path of each of the `programs`."""
    data = _data()
    units, services = data / "systemd/user", data / "dbus-1/services"
    activation = f"{names.BUS_NAME}.service"
    return [
        Placed(units / UNIT, _content(f"systemd/{UNIT}", programs, _unit_quote)),
        Placed(units / TEMPLATE, _content(f"systemd/{TEMPLATE}", programs, _unit_quote)),
        Placed(services / activation, _content(f"dbus/{activation}", programs, shlex.quote)),
        *(
            Placed(data / path, _content(f"completions/{name}", programs, str))
            for name, path in _COMPLETIONS
        ),
        *(
            Placed(data / "man" / page.parent.name / page.name, page.read_text())
            for page in _recorded("share/man/*/*")
        ),
    ]


def _data() -> Path:
    return Path(xdg.directory("XDG_DATA_HOME", "~/.local/share"))


def _hint_at_zsh() -> list[str]:
    """Of a user's directories it looks into none unless told."""
    if Path(os.environ.get("SHELL", "")).name != "zsh":
        return []
    return [f"for zsh, before compinit in ~/.zshrc: fpath+=({shlex.quote(str(_data() / _ZSH))})"]


def _content(resource: str, programs: Mapping[str, str], quote: Callable[[str], str]) -> str:
    content = contract.resource(resource).decode()
    for program, path in programs.items():
        content = content.replace(f"{PACKAGED}/{program}", quote(path))
    return content


def _unit_quote(path: str) -> str:
    """For ExecStart=: systemd.service(5), "Command lines"."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(path) & set(" \t\"'\\") else escaped


def _instances() -> list[str]:
    """Those of the template that run or have failed."""
    listed = ("list-units", "--all", "--plain", "--no-legend", INSTANCES)
    shown = _output("systemctl", "--user", *listed) or ""
    return [line.split()[0] for line in shown.splitlines()]


def _enabled() -> list[Path]:
    """The links by which `systemctl enable` has had them started at login."""
    configuration = Path(xdg.directory("XDG_CONFIG_HOME", "~/.config"))
    return sorted(configuration.glob(f"systemd/user/*.wants/{INSTANCES}"))


def _running_daemon() -> int | None:
    """Its process, on the bus that we are on."""
    method = [*names.BUS, "GetConnectionUnixProcessID", "s", names.BUS_NAME]
    answer = _output("busctl", "--user", "call", *method)  # "u 1234"
    return int(answer.split()[1]) if answer else None


def _reload() -> list[str]:
    """Neither manager need be there: both read the files when they start."""
    done = []
    if not _succeeds("busctl", "--user", "--quiet", "call", *names.BUS, "GetId") and _succeeds(
        # A user manager that has run since before the bus's package was installed.
        "systemctl", "--user", "--quiet", "start", "dbus.socket"
    ):  # fmt: skip
        done.append("started the session bus")
    if _succeeds("systemctl", "--user", "--quiet", "daemon-reload"):
        done.append("reloaded the user manager")
    if _succeeds("busctl", "--user", "--quiet", "call", *names.BUS, "ReloadConfig"):
        done.append("reloaded the session bus")
    return done


def _succession() -> list[str]:
    """A daemon that runs is of the version before, perhaps."""
    if not _succeeds("systemctl", "--user", "--quiet", "is-active", UNIT):
        return []
    _succeeds("systemctl", "--user", "--quiet", "restart", UNIT)
    return [f"restarted {UNIT}; its tunnels go on"]


def _succeeds(*command: str) -> bool:
    return _output(*command) is not None


def _output(*command: str) -> str | None:
    """What it prints; None if it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return None
