"""What outlives the daemon: fds that systemd holds meanwhile, and hands to the next one.

    daemon ── sd_notify(FDSTORE=1, FDNAME=tun@work) ──► systemd ── LISTEN_FDNAMES ──► next daemon

The store is kept when the unit is restarted, or fails and is started again, and dropped when it
stops for good (systemd.service(5), FileDescriptorStoreMax=). By itself systemd lets go of a pipe or
a socket whose other end is gone. Without systemd all of this does nothing: nothing outlives us.

What is stored of a tunnel is of use as long as its record is there: that comes last and goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from typing import Final

from wg4netnsd.aio import fdpath, process
from wg4netnsd.systemd import notify

log = logging.getLogger(__name__)

BARRIER_TIME: Final = 2.0  # seconds

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Kind(enum.StrEnum):
    """What an fd is to its tunnel."""

    RECORD = "record"  # a sealed memfd
    NEXT_RECORD = "next-record"  # so is this: while one replaces the other there are two
    TUN = "tun"
    NETNS = "netns"  # not where the tunnel must not keep it alive
    LEASE = "lease"
    PIDFD = "pidfd"  # this and the others: the engine's
    HANDOVER = "handover"  # an engine lives as long as somebody holds it
    EVENTS = "events"
    LOG = "log"


_TARGETS: Final = {
    Kind.RECORD: r"/memfd:.*",
    Kind.NEXT_RECORD: r"/memfd:.*",
    Kind.TUN: r"/.*/tun",
    Kind.NETNS: r"net:\[\d+\]|/.*",  # a path where it is bind-mounted
    Kind.LEASE: r".*",  # lifetime.py looks at it
    Kind.PIDFD: r"anon_inode:\[pidfd\]|pidfd:\[\d+\]",  # since Linux 6.9 the latter
    Kind.HANDOVER: r"socket:\[\d+\]",
    Kind.EVENTS: r"pipe:\[\d+\]",
    Kind.LOG: r"pipe:\[\d+\]",
}
"""What each leads to. Another fd under its name could fail, or block, wherever it is used."""

ENGINE_KINDS: Final = (Kind.PIDFD, Kind.HANDOVER, Kind.EVENTS, Kind.LOG)


class FdStore:
    """One tunnel's part of systemd's fd store. It owns no fd: systemd has its own copies."""

    def __init__(self, tunnel: str) -> None:
        self._tunnel = tunnel
        self._log_extra = {"TUNNEL": tunnel}
        self._stored: set[Kind] = set()

    def put(self, kind: Kind, fd: int) -> None:
        """Store it, in place of what was stored as that."""
        if not notify.is_supervised():
            return
        self.remove(kind)
        try:
            notify.store_fd(self._name(kind), fd)
        except OSError as error:  # too many descriptors on their way, or there is no systemd
            log.warning("systemd takes no %s: %s", kind, error.strerror, extra=self._log_extra)
        else:
            self._stored.add(kind)

    def put_record(self, content: bytes) -> None:
        """Store it, and only then let go of the one before."""
        if not notify.is_supervised():
            return
        before, now = Kind.RECORD, Kind.NEXT_RECORD
        if before not in self._stored:
            before, now = now, before
        try:
            with _sealed(content) as fd:
                self.put(now, fd)
        except OSError as error:  # then the one before has to do
            log.warning("its record can't be made: %s", error.strerror, extra=self._log_extra)
        else:
            self.remove(before)

    def remove(self, *kinds: Kind) -> None:
        for kind in kinds:
            if kind in self._stored:
                self._stored.remove(kind)
                notify.remove_stored_fd(self._name(kind))

    async def clear(self) -> None:
        """Store nothing of the tunnel any more; return when systemd has let go of it."""
        if self._stored:
            self.remove(*Kind)
            await _wait_processed()

    def _name(self, kind: Kind) -> str:
        return f"{kind}@{self._tunnel}"


class InheritedFds(FdStore):
    """A tunnel's fds that an earlier daemon stored. Owns them until they are popped."""

    def __init__(self, tunnel: str) -> None:
        super().__init__(tunnel)
        self._fds: dict[Kind, int] = {}

    def add(self, kind: Kind, fd: int) -> None:
        """Owns `fd`."""
        if kind in self._stored:  # both have been stored as this: none can be told from the other
            for other in (fd, *(self.pop_fds(kind) or ())):
                os.close(other)
        else:
            self._stored.add(kind)
            self._fds[kind] = fd

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._fds

    def pop_fds(self, *kinds: Kind) -> list[int] | None:
        """Return these fds, now the caller's, or None if one of them is missing."""
        if not self._fds.keys() >= set(kinds):
            return None
        return [self._fds.pop(kind) for kind in kinds]

    def pop_records(self) -> list[bytes]:
        """The content of the one record, or of both."""
        contents = []
        for kind in (Kind.RECORD, Kind.NEXT_RECORD):
            for fd in self.pop_fds(kind) or ():
                with os.fdopen(fd, "rb", buffering=0) as file:  # a copy, so its position is shared
                    file.seek(0)
                    contents.append(file.read())
        return contents

    @property
    def pid(self) -> int:
        """Of the engine; -1 where it has ended."""
        return process.pid_of(self._fds[Kind.PIDFD]) if Kind.PIDFD in self._fds else -1

    def close(self) -> None:
        """Close every fd that nobody popped."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def receive_fds() -> dict[str, InheritedFds]:
    """Return the fds that systemd handed to us, by the tunnels' names; drop those not ours."""
    found: dict[str, InheritedFds] = {}
    for fd, name in notify.inherited_fds():
        kind, _, tunnel = name.partition("@")
        if tunnel and kind in set(Kind) and re.fullmatch(_TARGETS[Kind(kind)], fdpath.target(fd)):
            found.setdefault(tunnel, InheritedFds(tunnel)).add(Kind(kind), fd)
        else:
            log.warning("the fd store has '%s', which is nothing of ours: removed", name)
            notify.remove_stored_fd(name)
            os.close(fd)
    return found


@contextlib.contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """A memfd with that content, which nobody can change any more (memfd_create(2))."""
    fd = os.memfd_create("wg4netnsd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(fd, "wb", buffering=0) as file:
        file.write(content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd


async def _wait_processed() -> None:
    """Return when systemd has done all that it was told so far; sd_notify_barrier(3)."""
    ours, theirs = os.pipe()
    closed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, closed.set)  # at its end of file
    try:
        notify.barrier(theirs)
        os.close(theirs)
        async with asyncio.timeout(BARRIER_TIME):
            await closed.wait()
    except TimeoutError:
        log.warning("systemd has not answered in %g s", BARRIER_TIME)
    finally:
        loop.remove_reader(ours)
        os.close(ours)
