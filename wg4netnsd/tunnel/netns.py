"""Network namespaces: open them and tell them apart."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Self, TypeVar

from wg4netnsd import errors
from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.kernel import tun
from wg4netnsd.kernel.syscalls import CLONE_NEWNET, NS_GET_NSTYPE

NETNS_HINT: Final = "expected a network namespace, such as /proc/PID/ns/net"

A = TypeVar("A")
T = TypeVar("T")

OPEN_TIME: Final = 5.0  # seconds


class NetnsId(NamedTuple):
    """A namespace's identity, whatever path or fd led to it (namespaces(7))."""

    device: int
    inode: int


@dataclass
class Netns:
    """A network namespace other than the daemon's own. Owns `fd`, which keeps it alive."""

    fd: int
    """-1 if it is closed."""
    id: NetnsId

    @classmethod
    async def from_fd(cls, fd: int) -> Self:
        """Make a Netns of a caller's fd; owns it, also if this raises.

        Raises InvalidNetns, Timeout.
        """
        try:
            # An fd without a path, like a namespace opened from /proc, is in no file system that
            # could stall. A bind-mounted namespace has a path.
            if not fdpath.has_path(fd):
                return cls.identify(fd)
            # A late result needs no discard: the fd is closed below.
            return await _call(cls.identify, fd, discard=blocking.ignore_result)
        except BaseException:
            blocking.close(fd)
            raise

    @classmethod
    async def from_path(cls, path: str) -> Self:
        """Open a namespace by its absolute path. Raises InvalidNetns, InvalidArgs, Timeout."""
        fdpath.refuse_relative(path, "netns_path")
        return await _call(cls._open, path, discard=cls.close)

    @classmethod
    def of_tun(cls, tun_fd: int) -> Self:
        """Open the namespace that a TUN's interface is in. Raises TunFailed if that is gone."""
        try:
            fd = tun.netns_fd(tun_fd)
        except OSError as error:
            if error.errno not in (errno.EBADFD, errno.EINVAL):
                raise
            raise errors.TunFailed("the interface is gone") from None
        return cls(fd, _id_of(fd))

    @classmethod
    def identify(cls, fd: int) -> Self:
        """Make a Netns of an fd, which stays the caller's if this raises.

        May block for ever on an fd of a stalled file system, so do not call it in the event loop's
        thread unless the fd has no path. Raises InvalidNetns.
        """
        try:
            if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
                raise errors.InvalidNetns(f"a namespace of another type: {NETNS_HINT}")
        except OSError as error:
            if error.errno == errno.EBADF:  # an O_PATH fd: fstat() works, setns() does not
                raise errors.InvalidNetns(
                    f"the fd was opened with O_PATH: {NETNS_HINT}, opened O_RDONLY"
                ) from None
            raise errors.InvalidNetns(f"not a namespace: {NETNS_HINT}") from None
        found = cls(fd, _id_of(fd))
        if found.id == own_id():
            raise errors.InvalidNetns(
                "this is the daemon's own namespace: expected an unprivileged one"
            )
        return found

    @classmethod
    def _open(cls, path: str) -> Self:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            text = f"{path}: {error.strerror}"
            raise errors.from_os_error(error, text, errors.InvalidNetns) from None
        try:
            return cls.identify(fd)
        except errors.InvalidNetns:
            os.close(fd)
            raise

    def close(self) -> None:
        """Stop keeping the namespace alive. Repeats are no-ops."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@functools.cache
def own_id() -> NetnsId:
    """Return the ID of the daemon's own namespace, the host's; the daemon never leaves it."""
    status = os.stat("/proc/self/ns/net")
    return NetnsId(status.st_dev, status.st_ino)


def _id_of(fd: int) -> NetnsId:
    status = os.fstat(fd)
    return NetnsId(status.st_dev, status.st_ino)


async def _call(function: Callable[[A], T], argument: A, discard: Callable[[T], object]) -> T:
    try:
        return await blocking.call(OPEN_TIME, function, argument, discard=discard)
    except TimeoutError:
        raise errors.Timeout(f"netns: its file system gave no answer in {OPEN_TIME:g} s") from None
