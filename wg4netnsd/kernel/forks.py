"""Forked processes of ours that run no program of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def fork_server(serve: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Fork a process that runs `serve` with a socket, and has nothing else of ours.

    Return its pid and the socket's other end. Call this before the process has a second thread.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        keep_only(0, 1, 2, theirs.fileno())
        exit_after(serve, theirs)
    theirs.close()
    return pid, ours


def exit_after(function: Any, *args: Any) -> NoReturn:
    """Run `function` as all that is left of a forked process: no atexit, no parent's `finally`."""
    status = 1
    try:
        function(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def keep_only(*fds: int) -> None:
    """Close all others: what the daemon has by now, as from the fd store, is not to live on."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in fds:
            with contextlib.suppress(OSError):  # EBADF: the listing's own
                os.close(fd)
