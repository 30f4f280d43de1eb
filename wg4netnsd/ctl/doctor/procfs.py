"""What /proc, /sys and the list of users tell `wg4netnsctl doctor`."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def user() -> str:
    """Ours, as files call us."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's, of a uid that its list does not have
        return str(os.getuid())


def sysctl(name: str) -> str:
    """Its value; empty where the kernel does not have it."""
    return read(f"/proc/sys/{name.replace('.', '/')}")


def read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def status(field: str) -> str:
    """From /proc/self/status."""
    lines = (line.split(":", 1) for line in read("/proc/self/status").splitlines())
    return next((value.strip() for name, value in lines if name == field), "")


def is_initial_userns() -> bool:
    """By its mapping all uids to themselves: user_namespaces(7)."""
    return read("/proc/self/uid_map").split() == ["0", "0", str(2**32 - 1)]


def _mount_points() -> list[str]:
    return [line.split()[4] for line in read("/proc/self/mountinfo").splitlines()]


def mounts_beneath(directory: str) -> list[str]:
    automount = f"{directory}/sys/fs/binfmt_misc"  # on an empty directory, which covers nothing
    return [p for p in _mount_points() if p.startswith(f"{directory}/") and p != automount]


def is_chroot() -> bool:
    """By the root's not being a mount, as it usually is not in one (proc_pid_mountinfo(5))."""
    return "/" not in _mount_points()
