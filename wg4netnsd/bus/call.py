"""A method call that came in, and the reply to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wg4netnsd import errors
from wg4netnsd.bus.frames import Frame
from wg4netnsd.files import client as files
from wg4netnsd.files.client import HeldFd, ReceivedFd


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
        self.fds: list[ReceivedFd | None] = [*frame.fds]
        """None where one was popped."""
        self.body: list[Any] = []
        """The arguments, once it is the call's turn."""

    def pop_fd(self, index: int) -> ReceivedFd:
        """Return the fd that an `h` of the body stands for; the caller owns it.

        Raises InvalidArgs.
        """
        fd = self.fds[index] if 0 <= index < len(self.fds) else None
        if fd is None:
            raise errors.InvalidArgs(f"file descriptor {index} did not come with the message")
        self.fds[index] = None
        return fd

    def pop_fds(self, indexes: Sequence[int]) -> list[int]:
        """Return the fds of several `h`, owned by the caller; none of them is a file's.

        Raises InvalidArgs, and then the call still owns them.
        """
        if len(set(indexes)) < len(indexes):
            raise errors.InvalidArgs("a file descriptor is given twice")
        popped = list[int]()
        try:
            for index in indexes:
                fd = self.pop_fd(index)
                if isinstance(fd, HeldFd):
                    self.fds[index] = fd
                    raise errors.InvalidArgs(f"file descriptor {index} is a file's")
                popped.append(fd)
        except errors.InvalidArgs:
            for index, fd in zip(indexes, popped, strict=False):
                self.fds[index] = fd
            raise
        return popped

    def close(self) -> None:
        """Close the fds that were not popped."""
        for index, fd in enumerate(self.fds):
            if fd is not None:
                self.fds[index] = None
                files.close(fd)


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
