"""What a caller's path or fd leads to, as far as that can be told without touching it."""

from __future__ import annotations

import os

from wg4netnsd.errors import InvalidArgs, quote


def refuse_relative(path: str, argument: str) -> None:
    """Refuse a path that means something else in the daemon than in the caller.

    Raises InvalidArgs.
    """
    normal = "/" + os.path.normpath(path).lstrip("/")  # which leaves a leading "//"
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgs(f"{argument}: {quote(path)}: expected an absolute path")
    if normal.startswith(("/proc/self", "/proc/thread-self", "/dev/fd", "/dev/std")):
        raise InvalidArgs(
            f"{argument}: {path!r} is the daemon's own file: expected /proc/PID/…, or pass an fd"
        )


def target(fd: int) -> str:
    """What `fd` leads to: a path, "pipe:[1]", "net:[2]", "anon_inode:[…]" or "/memfd:…".

    Safe on any fd, where fstat() or poll() on one of a stalled file system is not.
    """
    return os.readlink(f"/proc/self/fd/{fd}")


def is_memfd(fd: int) -> bool:
    return target(fd).startswith("/memfd:")


def has_path(fd: int) -> bool:
    """Could a call on `fd` block because of a file system?"""
    return target(fd).startswith("/") and not is_memfd(fd)
