"""A method call that came in, and what it is answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wg4netnsd import errors
from wg4netnsd.aio import blocking


@dataclass
class Call:
    """One incoming method call. Owns the fds that came with it, until they are taken."""

    sender: str
    path: str
    interface: str | None
    member: str
    signature: str
    body: list[Any]
    expects_reply: bool
    fds: list[int] = field(default_factory=list)

    def take_fd(self, index: int) -> int:
        """The fd that an `h` of the body stands for; its owner is who takes it.

        Raises InvalidArgs.
        """
        if not 0 <= index < len(self.fds) or self.fds[index] < 0:
            raise errors.InvalidArgs(f"file descriptor {index} did not come with the message")
        fd, self.fds[index] = self.fds[index], -1
        return fd

    def close(self) -> None:
        """Close what nobody took."""
        for index, fd in enumerate(self.fds):
            if fd >= 0:
                self.fds[index] = -1
                blocking.close(fd)


@dataclass
class Reply:
    """What a call is answered with. `fds` are closed once sent; an `h` of the body indexes them."""

    signature: str = ""
    body: Sequence[Any] = ()
    fds: list[int] = field(default_factory=list)
