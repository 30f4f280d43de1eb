"""Mounts of our own, which end with their namespace and show nowhere else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Final

from wg4netnsd.kernel.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    mount,
)

FLAGS: Final = MS_NOSUID | MS_NODEV


def own() -> None:
    """Nothing that is mounted in this mount namespace from here on shows in another.

    A slave still gets what the host mounts: a stick, a home directory. Private would not.
    """
    mount("", "/", "", MS_REC | MS_SLAVE)


def look_anew() -> None:
    """The directory that we are in, by its path: it may be covered by now."""
    with contextlib.suppress(OSError):  # it has been removed, or is closed to us
        os.chdir(os.getcwd())


def bind_all(covered: int, target: str, without: Collection[str]) -> None:
    """Have all that is in `covered`, an fd of a directory, in another one too, with what is mounted
    there."""
    for entry in os.scandir(covered):
        path = f"{target}/{entry.name}"
        if entry.name in without:
            continue
        with contextlib.suppress(FileNotFoundError):  # the host has removed it meanwhile
            if entry.is_symlink():
                os.symlink(os.readlink(entry.name, dir_fd=covered), path)
                continue
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(path)
            else:
                os.mknod(path)
            mount(f"/proc/self/fd/{covered}/{entry.name}", path, "", MS_BIND | MS_REC)


def cover_with_tmpfs(path: str) -> None:
    """Show nothing of a directory; what is opened of it before stays in reach."""
    mount("tmpfs", path, "tmpfs", FLAGS, "mode=0755")


def forbid_writing(path: str) -> None:
    """What is mounted there is read-only from here on; what is mounted in it is not touched."""
    mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | FLAGS)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """An fd of it, to get at what is about to be covered."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
