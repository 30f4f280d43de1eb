"""Check a caller's path or fd without touching the file it leads to."""

from __future__ import annotations

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


def is_memfd(fd: int) -> bool:
    return target(fd).startswith("/memfd:")


def has_path(fd: int) -> bool:
    """Return whether `fd` is in a file system, so that a call on it may block."""
    return target(fd).startswith("/") and not is_memfd(fd)
