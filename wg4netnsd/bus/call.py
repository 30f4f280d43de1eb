"""A method call that came in, and the reply to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wg4netnsd import errors
from wg4netnsd.aio import blocking
from wg4netnsd.bus.frames import Frame


class Call:
    """One incoming method call. Owns the fds that came with it, until they are popped."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.sender = frame.sender
        self.path = frame.path
        self.interface = frame.interface
        self.member = frame.member
        self.signature = frame.signature
        self.expects_reply = frame.expects_reply
        self.fds = frame.fds
        self.body: list[Any] = []
        """The arguments, once it is the call's turn."""

    def pop_fd(self, index: int) -> int:
        """Return the fd that an `h` of the body stands for; the caller owns it.

        Raises InvalidArgs.
        """
        if not 0 <= index < len(self.fds) or self.fds[index] < 0:
            raise errors.InvalidArgs(f"file descriptor {index} did not come with the message")
        fd, self.fds[index] = self.fds[index], -1
        return fd

    def pop_fds(self, indexes: Sequence[int]) -> list[int]:
        """Return the fds of several `h`, owned by the caller. Raises InvalidArgs, and pops none."""
        if len(set(indexes)) < len(indexes):
            raise errors.InvalidArgs("a file descriptor is given twice")
        for index in indexes:
            if not 0 <= index < len(self.fds) or self.fds[index] < 0:
                self.pop_fd(index)
        return [self.pop_fd(index) for index in indexes]

    def close(self) -> None:
        """Close the fds that were not popped."""
        for index, fd in enumerate(self.fds):
            if fd >= 0:
                self.fds[index] = -1
                blocking.close(fd)


@dataclass
class Reply:
    """The answer to a call. An `h` of the body is an index into `fds`, which the reply owns."""

    signature: str = ""
    body: Sequence[Any] = ()
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the fds of a reply that is not sent."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
