"""Mounts that only our mount namespace has, and that end with it."""

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


def cover_with_tmpfs(path: str) -> None:
    """Hide a directory's content; what was opened before stays reachable."""
    mount("tmpfs", path, "tmpfs", FLAGS, "mode=0755")


def forbid_writing(path: str) -> None:
    """Make a mount read-only; the mounts in it stay as they are."""
    mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | FLAGS)


@contextlib.contextmanager
def open_fd(path: str, flags: int) -> Iterator[int]:
    """Open an fd, to reach what is about to be covered."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
