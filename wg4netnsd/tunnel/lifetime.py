"""How long a tunnel lives, and leases."""

from __future__ import annotations

import asyncio
import enum
import os
import re
import select
from collections.abc import Callable
from typing import Final

from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.errors import InvalidArgs
from wg4netnsd.files import client as files
from wg4netnsd.files.client import HeldFd, ReceivedFd


class Lifetime(enum.StrEnum):
    NAMESPACE = "namespace"  # ends when nothing else keeps the namespace alive
    CLIENT = "client"  # ends when the caller leaves the bus
    LEASE = "lease"  # ends when the passed pipe, socket or pidfd hangs up
    PERSISTENT = "persistent"  # ends only by Close; keeps the namespace alive


# epoll always reports a hang-up (epoll_ctl(2)). A pipe is watched for nothing else, so data written
# into it never wakes us. A pidfd becomes readable when its process ends.
_EVENTS: Final = {
    r"pipe:\[\d+\]": 0,
    r"socket:\[\d+\]": select.EPOLLRDHUP,
    r"anon_inode:\[pidfd\]|pidfd:\[\d+\]": select.EPOLLIN,
}


class Lease:
    """An fd that ends its tunnel when it hangs up. Owns the fd."""

    def __init__(self, fd: ReceivedFd) -> None:
        """Take ownership of `fd`, also if this raises.

        Raises InvalidArgs if it is not a pipe, a socket or a pidfd.
        """
        kind = "" if isinstance(fd, HeldFd) else fdpath.target(fd)
        events = next((e for pattern, e in _EVENTS.items() if re.fullmatch(pattern, kind)), None)
        if isinstance(fd, HeldFd) or events is None:
            files.close(fd)
            raise InvalidArgs("lease: expected one end of a pipe or a socket, or a pidfd")
        try:
            self._epoll = select.epoll()
        except OSError:
            blocking.close(fd)
            raise
        self.fd = fd
        self._epoll.register(fd, events)

    def on_hangup(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the fd hangs up or has already hung up."""

        def on_event() -> None:
            self.close()
            callback()

        # An epoll fd is readable when one of its fds has an event (epoll(7)).
        asyncio.get_running_loop().add_reader(self._epoll, on_event)

    def close(self) -> None:
        """Stop watching, and close the fd. Repeats are no-ops."""
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll)
            self._epoll.close()
            os.close(self.fd)
            self.fd = -1
