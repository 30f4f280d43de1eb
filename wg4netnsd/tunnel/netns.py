"""Network namespaces: open them and tell them apart."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from dataclasses import dataclass
from typing import NamedTuple, Self

from wg4netnsd import errors
from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.files.client import FileProcesses, HeldFd, ReceivedFd
from wg4netnsd.files.server import NETNS_HINT
from wg4netnsd.kernel import tun
from wg4netnsd.kernel.syscalls import CLONE_NEWNET, NS_GET_NSTYPE


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
    async def from_fd(cls, fd: ReceivedFd) -> Self:
        """Make a Netns of a caller's fd; owns it, also if this raises.

        Raises InvalidNetns, LimitExceeded, Timeout.
        """
        if isinstance(fd, HeldFd):  # a bind-mounted namespace has a path, as files have
            fd = await fd.open_netns()
        return cls._own(fd)

    @classmethod
    async def from_path(cls, files: FileProcesses, path: str) -> Self:
        """Open a namespace by its absolute path.

        Raises InvalidNetns, InvalidArgs, LimitExceeded, Timeout.
        """
        fdpath.refuse_relative(path, "netns_path")
        return cls._own(await files.open_netns(path))

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

        May block for ever on an fd of a stalled file system. Raises InvalidNetns.
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
    def _own(cls, fd: int) -> Self:
        """Make a Netns of an fd; owns it, also if this raises. Raises InvalidNetns."""
        try:
            return cls.identify(fd)
        except BaseException:
            blocking.close(fd)
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
