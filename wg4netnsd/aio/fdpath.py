"""Check a caller's path or fd without touching the file it leads to."""

from __future__ import annotations

import fcntl
import os

from wg4netnsd.errors import InvalidArgs, quote


def refuse_relative(path: str, argument: str) -> None:
    """Raise InvalidArgs if the path leads elsewhere in the daemon than in the caller.

    `argument` is the name of the D-Bus argument, for the error.
    """
    normal = "/" + os.path.normpath(path).lstrip("/")  # normpath() keeps a leading "//"
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgs(f"{argument}: {quote(path)}: expected an absolute path")
    if normal.startswith(("/proc/self", "/proc/thread-self", "/dev/fd", "/dev/std")):
        raise InvalidArgs(
            f"{argument}: {path!r} is the daemon's own file: expected /proc/PID/…, or pass an fd"
        )


def target(fd: int) -> str:
    """Return the target of `fd`: a path, "pipe:[1]", "net:[2]", "anon_inode:[…]" or "/memfd:…".

    Never blocks, unlike fstat() or poll() on an fd of a stalled file system.
    """
    return os.readlink(f"/proc/self/fd/{fd}")


def is_memory(fd: int) -> bool:
    """Return whether `fd` is a memfd, or a file of a tmpfs. Its name could be any file's.

    Seals belong to memory of the kernel's own; that of other files is not even looked at
    (memfd_fcntl() in mm/memfd.c). Never blocks.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def needs_no_file_system(fd: int) -> bool:
    """Return whether no call on `fd` can wait for a file system: it is the kernel's own, like a
    pipe, a socket or a namespace opened from /proc, or in memory. Never blocks.
    """
    return not target(fd).startswith("/") or is_memory(fd)
