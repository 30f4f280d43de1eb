"""The systemd unit that this process runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wg4netnsd import names

SYSTEMD1: Final = "org.freedesktop.systemd1"


def cgroup() -> str:
    """Return our cgroup in the unified hierarchy, from /proc/self/cgroup (cgroups(7))."""
    return Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()


def name() -> str:
    """Return the name of the service whose cgroup we are in, or "" if it is not a service's."""
    last = cgroup().rpartition("/")[2]
    return last if last.endswith(".service") else ""


def dbus_object() -> tuple[str, str, str]:
    """Return our unit's service, path and interface on the session bus.

    See org.freedesktop.systemd1(5).
    """
    path = f"/org/freedesktop/systemd1/unit/{names.escape_label(name())}"
    return SYSTEMD1, path, f"{SYSTEMD1}.Unit"


def job_object(path: str) -> tuple[str, str, str]:
    """Return the service, path and interface of a job on the session bus."""
    return SYSTEMD1, path, f"{SYSTEMD1}.Job"
