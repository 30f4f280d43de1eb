"""The checks of the login session: its runtime directory, its bus and its systemd."""

from __future__ import annotations

import functools
import os
import stat
import time
from pathlib import Path
from typing import Any, Final

from wg4netnsd import names
from wg4netnsd.bus.address import session_address
from wg4netnsd.ctl.client import PROPERTIES, Client, NoBus, Rejected, plain
from wg4netnsd.ctl.doctor.finding import Blocked, Finding, note, ok, problem
from wg4netnsd.ctl.doctor.system import is_initial_userns, user
from wg4netnsd.ctl.failure import Failure

SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER: Final = (SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager")

ANSWER_TIME: Final = 5.0
"""Seconds for each answer over the bus. It takes a thousandth of that, but the machine may be
busy."""

_UNSET_ADDRESS: Final = "$ unset DBUS_SESSION_BUS_ADDRESS"


# ---------------------------------------------------------------- the bus


def ask(destination: str, path: str, interface: str, method: str, *body: Any) -> tuple[Any, ...]:
    """Call a method without starting its service. Raises Blocked without a bus, and Failure."""
    client = _connect()
    if isinstance(client, NoBus):
        raise Blocked("session bus")
    call = functools.partial(client.call, start=False, seconds=ANSWER_TIME)
    return call(path, interface, method, *body, destination=destination)


def get_all(destination: str, path: str, interface: str) -> dict[str, Any]:
    """All properties of an interface. Raises Blocked and Failure."""
    (variants,) = ask(destination, path, PROPERTIES, "GetAll", "s", interface)
    return plain(variants)


def has_owner(name: str) -> bool:
    """Does a service with this name run? Raises Blocked and Failure."""
    return bool(ask(*names.BUS, "NameHasOwner", "s", name)[0])


@functools.cache
def _connect() -> Client | NoBus:
    """Connect only once, as a bus may hang, and claim our uid, as the daemon does."""
    try:
        return Client(seconds=ANSWER_TIME, claim_uid=True)
    except NoBus as error:
        return error


def has_systemd() -> bool:
    """Is systemd on the bus? Raises Blocked and Failure.

    It starts the bus for the bus's first client, which may be us, and connects only then.
    """
    deadline = time.monotonic() + ANSWER_TIME
    while not has_owner(SYSTEMD):
        if not _is_its_bus() or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_its_bus() -> bool:
    """Is there a systemd that would connect to this bus?"""
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    is_there = Path(directory, "systemd/private").exists()
    return is_there and session_address() == f"unix:path={directory}/bus"


# ---------------------------------------------------------------- the checks


def runtime_directory() -> Finding:
    directory = os.environ.get("XDG_RUNTIME_DIR")
    if not directory:
        unset = problem("XDG_RUNTIME_DIR is not set")
        if os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
            unset = note(f"{unset.found}: a daemon that systemd does not start needs it")
        return unset.advise(_log_in())
    try:
        status = os.stat(directory)
    except OSError as error:
        return problem(f"{directory}: {error.strerror}").advise(_log_in())
    if not stat.S_ISDIR(status.st_mode):
        return problem(f"{directory} is not a directory").advise(_log_in())
    if status.st_uid != os.getuid():
        found = f"{directory} belongs to another user, of uid {status.st_uid}"
        return problem(found).advise(_log_in())
    if mode := stat.S_IMODE(status.st_mode) & 0o077:
        return note(
            f"{directory} is open to others: its mode has {mode:04o} more than 0700"
        ).advise(f"""Close it:
            $ chmod 0700 {directory}""")
    return ok(directory)


def _log_in() -> str:
    directory = Path(f"/run/user/{os.getuid()}")
    if os.getuid() == 0 and (caller := os.environ.get("SUDO_USER")):
        return f"""You are root by sudo. Run this as {caller}, without sudo:
            $ wg4netnsctl doctor"""
    if directory.is_dir() and directory.stat().st_uid == os.getuid():
        return f"""su and sudo do not start a login session, so your session's variables are not
            set. In this shell:
            $ export XDG_RUNTIME_DIR={directory}
            {_UNSET_ADDRESS}"""
    return f"""No systemd runs for {user()}: su and sudo do not start a login session. Log in by
        ssh, or with this, from the package systemd-container:
        $ sudo machinectl shell {user()}@
        Or have systemd run without a login, and export XDG_RUNTIME_DIR={directory}:
        $ sudo loginctl enable-linger {user()}"""


def session_bus() -> Finding:
    if not (address := session_address()):
        return problem(
            "neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS says where it is"
        ).advise("Fix 'runtime directory' first.")
    if isinstance(client := _connect(), Client):
        return ok(address)
    if isinstance(client.error, Rejected) and not is_initial_userns():
        found = f"{address}: it knows this process by another uid, and refuses it"
        return problem(found).advise("Fix 'host' first.")
    return problem(f"{address}: {client.reason}").advise(_get_bus(address, client.error))


def _get_bus(address: str, error: OSError | None) -> str:
    directory = os.environ.get("XDG_RUNTIME_DIR")
    if isinstance(error, TimeoutError):
        return """It hangs. This ends it and everything that depends on it:
            $ systemctl --user kill --signal=SIGKILL dbus.service"""
    if not directory:
        return _log_in()
    if address != f"unix:path={directory}/bus" and Path(directory, "bus").is_socket():
        return f"""There is no bus at that address any more, but systemd runs one. In this shell:
            {_UNSET_ADDRESS}"""
    places = ("/usr/lib", "/lib", "/etc", "/usr/local/lib")
    if not any(Path(place, "systemd/user/dbus.socket").exists() for place in places):
        return """systemd has no unit that starts one. On Debian and Ubuntu, install it and log in
            again:
            $ sudo apt install dbus-user-session"""
    return """Have systemd start it:
        $ systemctl --user start dbus.socket"""


def user_manager() -> Finding:
    try:
        if has_systemd():
            manager = get_all(*MANAGER)
            return ok(f"systemd {manager['Version']}, {manager['SystemState']}")
    except Failure as error:
        log = f"journalctl --boot _SYSTEMD_UNIT=user@{os.getuid()}.service"
        return problem(f"systemd --user does not answer: {error}").advise(f"""Its log may tell why:
            $ {log}""")
    found = "there is no systemd on this bus: tunnels end with the daemon"
    own_bus = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if own_bus and Path(os.environ.get("XDG_RUNTIME_DIR", ""), "systemd/private").exists():
        return note(f"{found}; systemd --user is on another bus").advise(f"""In this shell:
            {_UNSET_ADDRESS}""")
    return note(found).advise("""Nothing needs to be done if that is enough for you. Otherwise log
        in where systemd --user runs; 'loginctl user-status' shows whether it does.""")


def linger() -> Finding:
    if not Path("/run/systemd/system").exists():
        return ok("does not matter: this machine's init is not systemd")
    if Path("/var/lib/systemd/linger", user()).exists():
        return ok("tunnels stay up when you log out")
    return note("tunnels end at your last logout").advise("""To keep them up, and to start your
        units at boot:
        $ loginctl enable-linger""")
