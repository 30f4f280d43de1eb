"""How long a tunnel lives, and the lease that can end it."""

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


class Lifetime(enum.StrEnum):
    NAMESPACE = "namespace"  # ends when nobody else keeps the namespace
    CLIENT = "client"  # ends when the caller leaves the bus
    LEASE = "lease"  # ends when the passed pipe, socket or pidfd hangs up
    PERSISTENT = "persistent"  # ends at Close, and keeps an otherwise empty namespace alive


# A hang-up is reported unasked (epoll_ctl(2)), so a pipe is watched for nothing else: data that its
# owner writes into it then never wakes us. A pidfd turns readable when its process ends.
_EVENTS: Final = {
    r"pipe:\[\d+\]": 0,
    r"socket:\[\d+\]": select.EPOLLRDHUP,
    r"anon_inode:\[pidfd\]|pidfd:\[\d+\]": select.EPOLLIN,
}


class Lease:
    """Owns an fd, and tells once when it hangs up."""

    def __init__(self, fd: int) -> None:
        """Owns `fd` in any case. Raises InvalidArgs if it is of another kind."""
        kind = fdpath.target(fd)
        events = next((e for pattern, e in _EVENTS.items() if re.fullmatch(pattern, kind)), None)
        if events is None:
            blocking.close(fd)
            raise InvalidArgs("lease: expected one end of a pipe or a socket, or a pidfd")
        try:
            self._epoll = select.epoll()
        except OSError:
            blocking.close(fd)
            raise
        self.fd = fd
        self._epoll.register(fd, events)

    def on_hangup(self, callback: Callable[[], None]) -> None:
        """Call `ended` at the hang-up; at once if that was before."""

        def on_event() -> None:
            self.close()
            callback()

        # An epoll fd is readable when one of its members has an event (epoll(7)).
        asyncio.get_running_loop().add_reader(self._epoll, on_event)

    def close(self) -> None:
        """Stop watching; may be called again."""
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll)
            self._epoll.close()
            os.close(self.fd)
            self.fd = -1
