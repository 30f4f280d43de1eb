"""What systemd is told, asked to hold, and what it tells us."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import systemd.daemon

from wg4netnsd import names

SYSTEMD1: Final = "org.freedesktop.systemd1"


def notify_ready() -> None:
    """To be sent when calls are answered; sd_notify(3)."""
    systemd.daemon.notify("READY=1")


def notify_status(what: str) -> None:
    """What `systemctl status` shows."""
    systemd.daemon.notify(_status(what))


def notify_stopping(why: str) -> None:
    systemd.daemon.notify(f"STOPPING=1\n{_status(why)}")


def _status(what: str) -> str:
    """One line: each further one would be another assignment."""
    return f"STATUS={' '.join(what.split())}"


def notify_alive() -> None:
    """For the watchdog; systemd.service(5), WatchdogSec=."""
    systemd.daemon.notify("WATCHDOG=1")


def watchdog_time() -> float | None:
    """Seconds within which notify_alive() is to be called; None where nobody waits for it."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() else None


def unit() -> str:
    """The name of the service whose cgroup we are in; empty where it is none of a service."""
    name = cgroup().rpartition("/")[2]
    return name if name.endswith(".service") else ""


def unit_object() -> tuple[str, str, str]:
    """On the session bus, our unit: service, path, interface; org.freedesktop.systemd1(5)."""
    path = f"/org/freedesktop/systemd1/unit/{names.label(unit())}"
    return SYSTEMD1, path, f"{SYSTEMD1}.Unit"


def job_object(path: str) -> tuple[str, str, str]:
    """A job of its, likewise."""
    return SYSTEMD1, path, f"{SYSTEMD1}.Job"


def cgroup() -> str:
    """Our cgroup of the unified hierarchy, as cgroups(7) has it in /proc/PID/cgroup."""
    return Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()


# ---------------------------------------------------------------- the fd store


def is_supervising() -> bool:
    """Did systemd start us, and may it so hold what is to outlive us?"""
    return "NOTIFY_SOCKET" in os.environ


def store_fd(name: str, fd: int) -> None:
    """Have systemd hold a copy; FDSTORE= in sd_notify(3)."""
    systemd.daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=[fd])


def remove_stored_fd(name: str) -> None:
    systemd.daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def barrier(fd: int) -> None:
    """Have systemd close a copy of `fd` once it has done all before; sd_notify_barrier(3)."""
    systemd.daemon.notify("BARRIER=1", fds=[fd])


def inherited_fds() -> list[tuple[int, str]]:
    """What it held since a daemon before us, with the names; sd_listen_fds_with_names(3)."""
    found = systemd.daemon.listen_fds_with_names()
    for fd in found:
        os.set_inheritable(fd, False)
    return list(found.items())
