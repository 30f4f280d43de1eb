"""`wg4netnsctl setup`: install the units, activation file, completions and manual pages.

    ~/.local/share/systemd/user/wg4netnsd.service
    ~/.local/share/systemd/user/wg4netns@.service
    ~/.local/share/dbus-1/services/org.wg4netns1.service
    ~/.local/share/{bash-completion/completions,fish/vendor_completions.d,zsh/site-functions}/…
    ~/.local/share/man/…

It also changes how the programs start (launcher.py). The files get the paths of the `wg4netnsd` and
`wg4netnsctl` of this installation, whether it is in a virtual environment, pipx's or the system's.
"""

from __future__ import annotations

import contextlib
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
from typing import Any, Final, NamedTuple

from wg4netnsd import names
from wg4netnsd.bus import contract
from wg4netnsd.ctl import launcher, xdg
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import Failure

PROGRAMS: Final = ("wg4netnsd", "wg4netnsctl")
PACKAGED: Final = "/usr/bin"  # their directory in contrib/'s files, for distributions
PACKAGED_DATA: Final = "/usr/lib/systemd/user and /usr/share"
DISTRIBUTIONS: Final = ("debian",)  # as a package's INSTALLER
UNIT: Final = "wg4netnsd.service"
TEMPLATE: Final = "wg4netns@.service"
INSTANCES: Final = "wg4netns@*.service"

_ZSH: Final = "zsh/site-functions"
_COMPLETIONS: Final = (
    ("wg4netnsctl.bash", "bash-completion/completions/wg4netnsctl"),
    ("wg4netnsctl.fish", "fish/vendor_completions.d/wg4netnsctl.fish"),
    ("_wg4netnsctl", f"{_ZSH}/_wg4netnsctl"),
)


class SetupFile(NamedTuple):
    """A file that `setup` writes."""

    path: Path
    content: str


def run(arguments: Arguments) -> None:
    """Install or remove, and print each step."""
    for line in remove() if arguments.remove else install():
        print(line)


def install() -> list[str]:
    """Write missing and outdated files and have systemd and the bus read them. Returns the steps
    taken.

    Where a distribution's package has the files for all users, ours would hide them: they are
    removed.
    """
    if _is_packaged():
        done = _remove_files()
        return [
            *done,
            f"the files of the package are in {PACKAGED_DATA}",
            *_reload(),
            *_restart_daemon(),
        ]
    programs = {program: find_program(program) for program in PROGRAMS}
    done = _isolate(programs)
    for file in _files(programs):
        if file.path.is_file() and file.path.read_text() == file.content:
            done.append(f"unchanged {file.path}")
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.content)
        done.append(f"wrote {file.path}")
    return done + _reload() + _restart_daemon() + _hint_at_zsh()


def remove() -> list[str]:
    """Stop all tunnels and delete what install() wrote. Returns the steps taken."""
    done = []
    for instance in _instances():
        _succeeds("systemctl", "--user", "--quiet", "stop", instance)
        _succeeds("systemctl", "--user", "--quiet", "reset-failed", instance)
        done.append(f"stopped {instance}")
    if _succeeds("systemctl", "--user", "--quiet", "stop", UNIT):
        done.append(f"stopped {UNIT}")
    if pid := _daemon_pid():  # still running: it is on a bus without systemd
        os.kill(pid, signal.SIGTERM)
        done.append(f"sent SIGTERM to process {pid}")
    done += _remove_files(*_enabled())
    return done + _restore_scripts() + _reload()


def _is_packaged() -> bool:
    """Whether a distribution's package manager installed us, and not pip (PEP 376, INSTALLER)."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installer = importlib.metadata.distribution("wg4netnsd").read_text("INSTALLER")
        return (installer or "").strip() in DISTRIBUTIONS
    return False


def _remove_files(*more: Path) -> list[str]:
    """Delete what install() writes, and `more`. Returns the steps taken."""
    done = []
    for path in (*more, *(file.path for file in _files({}))):
        if path.is_symlink() or path.exists():
            path.unlink()
            done.append(f"removed {path}")
    return done


def _isolate(programs: Mapping[str, str]) -> list[str]:
    done = []
    for program, path in programs.items():
        try:
            if launcher.isolate(Path(path), block_interrupts=program == "wg4netnsctl"):
                done.append(f"isolated {path} from PYTHONPATH and the like")
        except OSError as error:  # a distribution's package
            done.append(f"unchanged {path}: {error.strerror}")
    return done


def _restore_scripts() -> list[str]:
    done = []
    for program in PROGRAMS:
        with contextlib.suppress(OSError, Failure):
            path = find_program(program)
            if launcher.restore(Path(path)):
                done.append(f"restored {path}")
    return done


def find_program(program: str) -> str:
    """The absolute path of this installation's `program`. Raises Failure."""
    candidates = _recorded(f"bin/{program}")
    candidates.append(Path(sys.argv[0]).absolute().with_name(program))
    if on_path := shutil.which(program):
        candidates.append(Path(on_path))
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return os.path.normpath(candidate)
    raise Failure(f"this installation has no {program}: is it complete?")


def _recorded(pattern: str) -> list[Path]:
    """The installed files that match, wherever pip has put them."""
    try:
        recorded = importlib.metadata.files("wg4netnsd") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(os.path.normpath(str(f.locate()))) for f in recorded if f.match(pattern)]


def _files(programs: Mapping[str, str]) -> list[SetupFile]:
    """All files, with the paths in `programs` filled in."""
    data = _data()
    units, services = data / "systemd/user", data / "dbus-1/services"
    activation = f"{names.BUS_NAME}.service"
    return [
        SetupFile(units / UNIT, _content(f"systemd/{UNIT}", programs, _unit_quote)),
        SetupFile(units / TEMPLATE, _content(f"systemd/{TEMPLATE}", programs, _unit_quote)),
        SetupFile(services / activation, _content(f"dbus/{activation}", programs, shlex.quote)),
        *(
            SetupFile(data / path, _content(f"completions/{name}", programs, str))
            for name, path in _COMPLETIONS
        ),
        *(
            SetupFile(data / "man" / page.parent.name / page.name, page.read_text())
            for page in _recorded("share/man/*/*")
        ),
    ]


def _data() -> Path:
    return Path(xdg.directory("XDG_DATA_HOME", "~/.local/share"))


def _hint_at_zsh() -> list[str]:
    """Tell zsh users where the completions are: zsh searches no directory in the home by itself."""
    if Path(os.environ.get("SHELL", "")).name != "zsh":
        return []
    return [f"for zsh, before compinit in ~/.zshrc: fpath+=({shlex.quote(str(_data() / _ZSH))})"]


def _content(resource: str, programs: Mapping[str, str], quote: Callable[[str], str]) -> str:
    content = contract.resource(resource).decode()
    for program, path in programs.items():
        content = content.replace(f"{PACKAGED}/{program}", quote(path))
    return content


def _unit_quote(path: str) -> str:
    """Quote for ExecStart=; systemd.service(5), "Command lines"."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(path) & set(" \t\"'\\") else escaped


def _instances() -> list[str]:
    """The template's units that are running or have failed."""
    listed = ("list-units", "--all", "--plain", "--no-legend", INSTANCES)
    shown = _output("systemctl", "--user", *listed) or ""
    return [line.split()[0] for line in shown.splitlines()]


def _enabled() -> list[Path]:
    """The links by which `systemctl enable` starts the template's units at login."""
    configuration = Path(xdg.directory("XDG_CONFIG_HOME", "~/.config"))
    return sorted(configuration.glob(f"systemd/user/*.wants/{INSTANCES}"))


def _daemon_pid() -> int | None:
    answer = _call_bus("GetConnectionUnixProcessID", "s", names.BUS_NAME)
    return int(answer[0]) if answer else None


def _reload() -> list[str]:
    """Have systemd and the bus read the files. Where one does not run, it will read them later."""
    done = []
    if not _call_bus("GetId") and _succeeds(
        # A user manager that is older than the installation of the package with the bus's socket.
        "systemctl", "--user", "--quiet", "start", "dbus.socket"
    ):  # fmt: skip
        done.append("started the session bus")
    if _succeeds("systemctl", "--user", "--quiet", "daemon-reload"):
        done.append("reloaded the user manager")
    if _call_bus("ReloadConfig") is not None:
        done.append("reloaded the session bus")
    return done


def _restart_daemon() -> list[str]:
    """Replace a running daemon, which may be of an earlier version."""
    if not _succeeds("systemctl", "--user", "--quiet", "is-active", UNIT):
        return []
    _succeeds("systemctl", "--user", "--quiet", "restart", UNIT)
    return [f"restarted {UNIT}; its tunnels go on"]


def _call_bus(method: str, *body: Any) -> tuple[Any, ...] | None:
    """The reply of the bus; None if there is none."""
    try:
        with Client() as client:
            return client.call_bus(method, *body)
    except Failure:
        return None


def _succeeds(*command: str) -> bool:
    return _output(*command) is not None


def _output(*command: str) -> str | None:
    """Run a command and return its output; None if it fails or is missing."""
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return None
