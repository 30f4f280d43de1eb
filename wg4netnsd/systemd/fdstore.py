"""systemd's fd store: the fds that it holds for us, and passes to the next daemon.

    daemon ── sd_notify(FDSTORE=1, FDNAME=tun@work) ──► systemd ── LISTEN_FDNAMES ──► next daemon

systemd keeps the store while the unit is restarted, by request or after a failure, and drops it
when the unit stops for good (systemd.service(5), FileDescriptorStoreMax=). It also drops a pipe or
a Unix socket when the other end is gone. Without systemd, everything here does nothing.

A tunnel's fds are of use only while its record is stored, so the record is stored last and removed
first.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Final

from wg4netnsd.aio import fdpath, process
from wg4netnsd.systemd import notify

log = logging.getLogger(__name__)

BARRIER_TIME: Final = 2.0  # seconds

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class FdKind(enum.StrEnum):
    """What an fd is for."""

    RECORD = "record"  # a sealed memfd
    NEXT_RECORD = "next-record"  # a sealed memfd too: both exist while one replaces the other
    TUN = "tun"
    NETNS = "netns"  # absent if the tunnel must not keep the namespace alive
    LEASE = "lease"
    TRANSIT = "transit"  # the namespace that UDP sockets are opened in; absent if it is the host's
    UDP4 = "udp4"  # the UDP sockets that engines use, each absent if the kernel lacks its family
    UDP6 = "udp6"
    PIDFD = "pidfd"  # the engine's, like all below
    HANDOVER = "handover"  # the engine ends when nobody holds this socket
    EVENTS = "events"
    LOG = "log"


_TARGETS: Final = {
    FdKind.RECORD: r"/memfd:.*",
    FdKind.NEXT_RECORD: r"/memfd:.*",
    FdKind.TUN: r"/.*/tun",
    FdKind.NETNS: r"net:\[\d+\]|/.*",  # a path if it is bind-mounted
    FdKind.LEASE: r".*",  # checked in lifetime.py
    FdKind.TRANSIT: r"net:\[\d+\]|/.*",
    FdKind.UDP4: r"socket:\[\d+\]",  # checked further in engine/udp.py
    FdKind.UDP6: r"socket:\[\d+\]",
    FdKind.PIDFD: r"anon_inode:\[pidfd\]|pidfd:\[\d+\]",  # the latter since Linux 6.9
    FdKind.HANDOVER: r"socket:\[\d+\]",
    FdKind.EVENTS: r"pipe:\[\d+\]",
    FdKind.LOG: r"pipe:\[\d+\]",
}
"""The expected target of each fd. Any other fd under that name could fail or block when used."""

ENGINE_KINDS: Final = (FdKind.PIDFD, FdKind.HANDOVER, FdKind.EVENTS, FdKind.LOG)
UDP_KINDS: Final = {socket.AF_INET: FdKind.UDP4, socket.AF_INET6: FdKind.UDP6}


class FdStore:
    """One tunnel's fds in the store. Owns none of them: systemd has its own copies."""

    def __init__(self, tunnel: str) -> None:
        self._tunnel = tunnel
        self._log_extra = {"TUNNEL": tunnel}
        self._stored: set[FdKind] = set()

    def put(self, kind: FdKind, fd: int) -> None:
        """Store a copy of `fd`, in place of the one stored as `kind`."""
        if not notify.is_supervised():
            return
        self.remove(kind)
        try:
            # A UDP socket that reports an error goes on working.
            notify.store_fd(self._name(kind), fd, poll=kind not in UDP_KINDS.values())
        except OSError as error:  # too many fds in flight, or systemd is gone
            log.warning(
                "systemd can't be given the %s fd: %s", kind, error.strerror, extra=self._log_extra
            )
        else:
            self._stored.add(kind)

    def put_record(self, content: bytes) -> None:
        """Store a new record, and only then remove the last one."""
        if not notify.is_supervised():
            return
        old, new = FdKind.RECORD, FdKind.NEXT_RECORD
        if old not in self._stored:
            old, new = new, old
        try:
            with _sealed(content) as fd:
                self.put(new, fd)
        except OSError as error:  # the last record stays
            log.warning(
                "the tunnel's record can't be written: %s", error.strerror, extra=self._log_extra
            )
        else:
            self.remove(old)

    def remove(self, *kinds: FdKind) -> None:
        for kind in kinds:
            if kind in self._stored:
                self._stored.remove(kind)
                notify.remove_stored_fd(self._name(kind))

    async def clear(self) -> None:
        """Remove all of the tunnel's fds; return when systemd has closed them."""
        if self._stored:
            self.remove(*FdKind)
            await _wait_processed()

    def _name(self, kind: FdKind) -> str:
        return f"{kind}@{self._tunnel}"


class InheritedFds(FdStore):
    """The fds of a tunnel that an earlier daemon stored. Owns them until they are popped."""

    def __init__(self, tunnel: str) -> None:
        super().__init__(tunnel)
        self._fds: dict[FdKind, int] = {}

    def add(self, kind: FdKind, fd: int) -> None:
        """Add `fd`, now ours. Two fds of one kind are both closed: nothing tells which is right."""
        if kind in self._stored:
            for other in (fd, *(self.pop_fds(kind) or ())):
                os.close(other)
        else:
            self._stored.add(kind)
            self._fds[kind] = fd

    def __contains__(self, kind: FdKind) -> bool:
        return kind in self._fds

    def pop_fds(self, *kinds: FdKind) -> list[int] | None:
        """Return these fds, now owned by the caller, or None if one of them is missing."""
        if not self._fds.keys() >= set(kinds):
            return None
        return [self._fds.pop(kind) for kind in kinds]

    def pop_records(self) -> list[bytes]:
        """Read and close the record, or both of them."""
        contents = []
        for kind in (FdKind.RECORD, FdKind.NEXT_RECORD):
            for fd in self.pop_fds(kind) or ():
                with os.fdopen(fd, "rb", buffering=0) as file:
                    file.seek(0)  # systemd's copy shares the position
                    contents.append(file.read())
        return contents

    @property
    def pid(self) -> int:
        """The engine's PID; -1 if it has ended."""
        return process.pid_of(self._fds[FdKind.PIDFD]) if FdKind.PIDFD in self._fds else -1

    def close(self) -> None:
        """Close every fd that was not popped."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def receive_fds() -> dict[str, InheritedFds]:
    """Return the fds that systemd passed to us, by tunnel name; drop any that we did not store."""
    found: dict[str, InheritedFds] = {}
    for fd, name in notify.inherited_fds():
        kind, _, tunnel = name.partition("@")
        if (
            tunnel
            and kind in set(FdKind)
            and re.fullmatch(_TARGETS[FdKind(kind)], fdpath.target(fd))
        ):
            found.setdefault(tunnel, InheritedFds(tunnel)).add(FdKind(kind), fd)
        else:
            log.warning("the fd store held an unexpected fd, '%s': removed", name)
            notify.remove_stored_fd(name)
            os.close(fd)
    return found


@contextlib.contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """Open a memfd with `content`, sealed against any change (memfd_create(2))."""
    fd = os.memfd_create("wg4netnsd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(fd, "wb", buffering=0) as file:
        file.write(content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd


async def _wait_processed() -> None:
    """Return when systemd has processed all messages so far; sd_notify_barrier(3)."""
    ours, theirs = os.pipe()
    closed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, closed.set)  # at end of file
    try:
        notify.barrier(theirs)
        os.close(theirs)
        async with asyncio.timeout(BARRIER_TIME):
            await closed.wait()
    except TimeoutError:
        log.warning("systemd has not processed our messages within %g s", BARRIER_TIME)
    finally:
        loop.remove_reader(ours)
        os.close(ours)
