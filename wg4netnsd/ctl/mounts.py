"""Mounts that only our mount namespace has, and that end with it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from typing import Final

from wg4netnsd.kernel.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    mount,
)

FLAGS: Final = MS_NOSUID | MS_NODEV


def isolate() -> None:
    """Keep later mounts in this mount namespace from showing in others.

    A slave still gets what the host mounts, such as a USB stick or a home directory; a private
    mount would not.
    """
    mount("", "/", "", MS_REC | MS_SLAVE)


def reenter_directory() -> None:
    """Enter the current directory again by its path, as mounts may have covered it."""
    with contextlib.suppress(OSError):  # it was removed, or we may not enter it
        os.chdir(os.getcwd())


def bind_all(covered: int, target: str, without: Collection[str]) -> None:
    """Bind all that is in `covered`, an fd of a directory, to `target`, with the mounts in it."""
    for entry in os.scandir(covered):
        path = f"{target}/{entry.name}"
        if entry.name in without:
            continue
        with contextlib.suppress(FileNotFoundError):  # the host removed it meanwhile
            if entry.is_symlink():
                os.symlink(os.readlink(entry.name, dir_fd=covered), path)
                continue
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(path)
            else:
                os.mknod(path)
            mount(f"/proc/self/fd/{covered}/{entry.name}", path, "", MS_BIND | MS_REC)


def leave_out(directory: str, name: str) -> None:
    """Cover a directory with one that has everything in it, but not `name`."""
    with open_fd(directory, os.O_DIRECTORY) as covered:
        cover_with_tmpfs(directory)
        bind_all(covered, directory, without=(name,))
        forbid_writing(directory)


def cover_with_tmpfs(path: str) -> None:
    """Hide a directory's content; what was opened before stays reachable."""
    mount("tmpfs", path, "tmpfs", FLAGS, "mode=0755")


def forbid_writing(path: str, more: int = 0) -> None:
    """Make a mount read-only, with `more` flags; the mounts in it stay as they are."""
    mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | FLAGS | more)


def bind_file(source: int, target: str) -> None:
    """Bind the file of the fd `source` to `target`, read-only.

    A flag that its mount has outside can't be cleared here, so we set all of them.
    """
    mount(f"/proc/self/fd/{source}", target, "", MS_BIND)
    forbid_writing(target, MS_NOEXEC)


def renew_sysfs() -> None:
    """Have /sys show the interfaces of our network namespace only; what is mounted in it stays.

    A sysfs shows those of the namespace that it was mounted in, so the inherited one has the
    host's. Containers often hide a part of theirs; the kernel then refuses another one, and it
    stays (mount_too_revealing() in fs/namespace.c).
    """
    inside = [path for path in _mount_points() if path.startswith("/sys/")]
    with contextlib.suppress(OSError), open_fd("/sys", os.O_DIRECTORY) as covered:
        try:
            mount("sysfs", "/sys", "sysfs", FLAGS | MS_NOEXEC)
        except PermissionError:  # the inherited one may not be written to
            mount("sysfs", "/sys", "sysfs", FLAGS | MS_NOEXEC | MS_RDONLY)
        for path in inside:
            if not any(path.startswith(f"{other}/") for other in inside):  # those come along
                source = f"/proc/self/fd/{covered}/{path.removeprefix('/sys/')}"
                with contextlib.suppress(OSError):
                    mount(source, path, "", MS_BIND | MS_REC)


def _mount_points() -> list[str]:
    """Where something is mounted; the kernel escapes blanks and \\ (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", encoding="latin-1") as file:
        found = [line.split(" ")[4] for line in file]
    return [os.fsdecode(_unescape(path.encode("latin-1"))) for path in found]


def _unescape(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), path)


@contextlib.contextmanager
def open_fd(path: str, flags: int) -> Iterator[int]:
    """Open an fd, to reach what is about to be covered."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
