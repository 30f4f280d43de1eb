"""The programs that a session bus may run: dbus-daemon, and dbus-broker, as on Fedora and Arch.

dbus-broker has systemd start all services. Without systemd it starts none; the rest is the same.
"""

import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support import stage

DAEMON: Final = "dbus-daemon"
BROKER: Final = "dbus-broker"

ON_BOTH = pytest.mark.parametrize("bus_program", [DAEMON, BROKER], indirect=True)
"""For tests of what the bus takes part in: they run with each."""

_LISTEN = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=dbus.socket exec "$@" 3<&"$0"'


def start(
    program: str, path: Path, environment: Mapping[str, str], silent: bool = False
) -> subprocess.Popen[bytes]:
    """Start a bus as systemd does, on a socket that clients may connect to at once:
    sd_listen_fds(3)."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        return subprocess.Popen(
            ["bash", "-c", _LISTEN, str(listener.fileno()), *_command(program)],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if silent else None,
            env=environment,
        )


def _command(program: str) -> list[str]:
    if program == DAEMON:
        return ["dbus-daemon", "--session", "--nofork", "--nosyslog", "--address=systemd:"]
    # It starts the broker by a relative path: unpack() of scripts/lib.sh has seen to that.
    chdir = f"--chdir={_unpacked()}"
    return ["/usr/bin/env", chdir, "usr/bin/dbus-broker-launch", "--scope=user"]


def install_broker(runtime: Path) -> None:
    """Before a user manager starts: have it run dbus-broker as its dbus.service, by the package's
    own unit, of which only the program's path differs."""
    units = runtime / "systemd/user"
    (units / "dbus-broker.service.d").mkdir(parents=True)
    shutil.copy(f"{_unpacked()}/usr/lib/systemd/user/dbus-broker.service", units)
    (units / "dbus.service").symlink_to("dbus-broker.service")
    lines = ["[Service]", "ExecStart=", f"ExecStart={shlex.join(_command(BROKER))}", ""]
    (units / "dbus-broker.service.d/unpacked.conf").write_text("\n".join(lines))


def _unpacked() -> str:
    found = stage.read()
    assert found
    return found.unpacked
