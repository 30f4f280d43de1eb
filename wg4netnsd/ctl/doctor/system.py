"""The user, and this process and the kernel's settings as /proc and /sys show them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def user() -> str:
    """The user's name; the uid where the list of users lacks it, as in some containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def read(path: str) -> str:
    """A file's text; empty where it can't be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def sysctl(name: str) -> str:
    """A setting's value; empty where the kernel does not have it."""
    return read(f"/proc/sys/{name.replace('.', '/')}")


def is_initial_userns() -> bool:
    """Does our user namespace map all uids to themselves (user_namespaces(7))?"""
    return read("/proc/self/uid_map").split() == ["0", "0", str(2**32 - 1)]


def is_chroot() -> bool:
    """Is our root no mount, as in most chroots (proc_pid_mountinfo(5))?"""
    return "/" not in _mount_points()


def mounts_in_proc() -> list[str]:
    automount = "/proc/sys/fs/binfmt_misc"  # on an empty directory, so it covers nothing
    return [path for path in _mount_points() if path.startswith("/proc/") and path != automount]


def _mount_points() -> list[str]:
    return [line.split()[4] for line in read("/proc/self/mountinfo").splitlines()]
