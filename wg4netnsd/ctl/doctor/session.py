"""`wg4netnsctl doctor`: the session, its bus and its systemd. Starts nothing."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path
from typing import Final

from wg4netnsd.bus.address import session_address
from wg4netnsd.ctl.doctor.busprobe import AuthenticationError, Bus, Unanswered
from wg4netnsd.ctl.doctor.finding import Finding, NotYet, note, ok, problem, run
from wg4netnsd.ctl.doctor.procfs import is_initial_userns, user

SYSTEMD: Final = "org.freedesktop.systemd1"

_LINGERING: Final = Path("/var/lib/systemd/linger")
_BUS_SOCKET_UNIT: Final = "systemd/user/dbus.socket"
_UNIT_PATHS: Final = ("/usr/lib", "/lib", "/etc", "/usr/local/lib")


def runtime_directory() -> Finding:
    directory = os.environ.get("XDG_RUNTIME_DIR")
    if not directory:
        found = "XDG_RUNTIME_DIR is not set"
        if os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
            return note(f"{found}: a daemon that no systemd starts needs it", *_how_to_log_in())
        return problem(found, *_how_to_log_in())
    try:
        status = os.stat(directory)
    except OSError as error:
        return problem(f"{directory}: {error.strerror}", *_how_to_log_in())
    if not stat.S_ISDIR(status.st_mode):
        return problem(f"{directory} is no directory", *_how_to_log_in())
    if status.st_uid != os.getuid():
        return problem(f"{directory} is another user's, of uid {status.st_uid}", *_how_to_log_in())
    if mode := stat.S_IMODE(status.st_mode) & 0o077:
        return note(
            f"{directory} is open to others: its mode has {mode:04o} more than 0700",
            "Close it:",
            run(f"chmod 0700 {directory}"),
        )
    return ok(directory)


def session_bus() -> Finding:
    if not (address := session_address()):
        return problem(
            "neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS tells where it is",
            "See to 'runtime directory' first.",
        )
    if isinstance(error := _connect(), AuthenticationError) and not is_initial_userns():
        return problem(
            f"{address}: it knows this process by another uid, and refuses it",
            "See to 'host' first.",
        )
    if isinstance(error, Exception):
        reason = getattr(error, "strerror", None) or error
        return problem(f"{address}: {reason}", *_how_to_get_bus(address, error))
    return ok(address)


def connected() -> Bus:
    """The session bus. Raises NotYet where there is none: session_bus() tells why."""
    if isinstance(bus := _connect(), Bus):
        return bus
    raise NotYet("session bus")


@functools.cache
def _connect() -> Bus | Exception:
    """It is asked for once, as one that hangs takes its time."""
    try:
        return Bus.connect(session_address())
    except Exception as error:  # jeepney's are of many types, none of them documented
        return error


def _how_to_log_in() -> list[str]:
    uid = os.getuid()
    directory = Path(f"/run/user/{uid}")
    if uid == 0 and (caller := os.environ.get("SUDO_USER")):
        return [f"You are root by sudo. Ask as {caller}, who needs no sudo for it:",
                run("wg4netnsctl doctor")]  # fmt: skip
    if directory.is_dir() and directory.stat().st_uid == uid:
        return [
            "su and sudo are no login, and bring it not along. In this shell:",
            run(f"export XDG_RUNTIME_DIR={directory}"),
            run("unset DBUS_SESSION_BUS_ADDRESS"),
        ]
    return [
        f"No systemd runs for {user()}, as su and sudo are no login. Log in by ssh, or by this, "
        "of the package systemd-container:",
        run(f"sudo machinectl shell {user()}@"),
        f"Or have it run without a login, and export XDG_RUNTIME_DIR as {directory}:",
        run(f"sudo loginctl enable-linger {user()}"),
    ]


def _how_to_get_bus(address: str, error: Exception) -> list[str]:
    if isinstance(error, TimeoutError):
        return ["It hangs. This ends it, and whatever lives on it:",
                run("systemctl --user kill --signal=SIGKILL dbus.service")]  # fmt: skip
    directory = os.environ.get("XDG_RUNTIME_DIR")
    systemds = f"unix:path={directory}/bus"
    if not directory:
        return _how_to_log_in()
    if address != systemds and Path(directory, "bus").is_socket():
        return ["That is no bus any more, and systemd has one. In this shell:",
                run("unset DBUS_SESSION_BUS_ADDRESS")]  # fmt: skip
    if not any(Path(place, _BUS_SOCKET_UNIT).exists() for place in _UNIT_PATHS):
        return [
            "systemd is not told to start one. On Debian and Ubuntu, install this, and log in "
            "again:",
            run("sudo apt install dbus-user-session"),
        ]
    return ["Have systemd start it:", run("systemctl --user start dbus.socket")]


# ---------------------------------------------------------------- systemd


def user_manager() -> Finding:
    bus = connected()
    try:
        if not bus.has_owner(SYSTEMD):
            return _no_manager()
        manager = bus.properties(SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager")
    except Unanswered as error:
        return problem(
            f"systemd --user does not answer: {error}",
            "Its log may tell why:",
            run(f"journalctl --boot _SYSTEMD_UNIT=user@{os.getuid()}.service"),
        )
    return ok(f"systemd {manager['Version']}, {manager['SystemState']}")


def _no_manager() -> Finding:
    found = "there is no systemd on this bus: tunnels end with the daemon"
    own = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if own and Path(directory, "systemd/private").exists():
        return note(f"{found}; systemd --user is on another one", "In this shell:",
                    run("unset DBUS_SESSION_BUS_ADDRESS"))  # fmt: skip
    return note(
        found,
        "Nothing need be done if that will do. Else log in where systemd --user runs: "
        "'loginctl user-status' shows whether it does.",
    )


def linger() -> Finding:
    me = user()
    if not Path("/run/systemd/system").exists():
        return ok("does not matter: systemd is not this machine's init")
    if (_LINGERING / me).exists():
        return ok("tunnels stay when you log out")
    return note(
        "tunnels end when you log out for the last time",
        "If they shall stay, and units of yours start at boot:",
        run("loginctl enable-linger"),
    )
