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
    GATEWAY_PIDFD = "gateway-pidfd"
    GATEWAY_CONTROL = "gateway-control"  # the gateway ends when nobody holds this socket
    LISTENER = "listener"  # a forward's; stored under listener_key()


def listener_key(number: int) -> str:
    """Return the key of a forward's listener: there are many, each with a number of its own."""
    return f"{FdKind.LISTENER}.{number}"


_TARGETS: Final = {
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
    FdKind.GATEWAY_PIDFD: r"anon_inode:\[pidfd\]|pidfd:\[\d+\]",
    FdKind.GATEWAY_CONTROL: r"socket:\[\d+\]",
    FdKind.LISTENER: r"socket:\[\d+\]",
}
"""The expected target of each fd that is not a record. Any other fd under that name could fail or
block when used."""

ENGINE_KINDS: Final = (FdKind.PIDFD, FdKind.HANDOVER, FdKind.EVENTS, FdKind.LOG)
GATEWAY_KINDS: Final = (FdKind.GATEWAY_PIDFD, FdKind.GATEWAY_CONTROL)
UDP_KINDS: Final = {socket.AF_INET: FdKind.UDP4, socket.AF_INET6: FdKind.UDP6}


class FdStore:
    """One tunnel's fds in the store. Owns none of them: systemd has its own copies."""

    def __init__(self, tunnel: str) -> None:
        self._tunnel = tunnel
        self._log_extra = {"TUNNEL": tunnel}
        self._stored: set[str] = set()

    def put(self, key: str, fd: int) -> None:
        """Store a copy of `fd`, in place of the one stored as `key`.

        A key is an FdKind or a listener_key().
        """
        if not notify.is_supervised():
            return
        self.remove(key)
        try:
            # A UDP socket that reports an error goes on working.
            poll = key not in UDP_KINDS.values() and _kind(key) is not FdKind.LISTENER
            notify.store_fd(self._name(key), fd, poll=poll)
        except OSError as error:  # too many fds in flight, or systemd is gone
            log.warning(
                "systemd can't be given the %s fd: %s", key, error.strerror, extra=self._log_extra
            )
        else:
            self._stored.add(key)

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

    def remove(self, *keys: str) -> None:
        for key in keys:
            if key in self._stored:
                self._stored.remove(key)
                notify.remove_stored_fd(self._name(key))

    def remove_all(self) -> None:
        self.remove(*self._stored)

    async def clear(self) -> None:
        """Remove all of the tunnel's fds; return when systemd has closed them."""
        if self._stored:
            self.remove_all()
            await _wait_processed()

    def _name(self, key: str) -> str:
        return f"{key}@{self._tunnel}"


class InheritedFds(FdStore):
    """The fds of a tunnel that an earlier daemon stored. Owns them until they are popped."""

    def __init__(self, tunnel: str) -> None:
        super().__init__(tunnel)
        self._fds: dict[str, int] = {}

    def add(self, key: str, fd: int) -> None:
        """Add `fd`, now ours. Two fds of one key are both closed: nothing tells which is right."""
        if key in self._stored:
            for other in (fd, *(self.pop_fds(key) or ())):
                os.close(other)
        else:
            self._stored.add(key)
            self._fds[key] = fd

    def __contains__(self, key: str) -> bool:
        return key in self._fds

    def pop_fds(self, *keys: str) -> list[int] | None:
        """Return these fds, now owned by the caller, or None if one of them is missing."""
        if not self._fds.keys() >= set(keys):
            return None
        return [self._fds.pop(key) for key in keys]

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
    def pids(self) -> set[int]:
        """The PIDs of the engine and the gateway; -1 for one that has ended."""
        kinds = (FdKind.PIDFD, FdKind.GATEWAY_PIDFD)
        return {process.pid_of(self._fds[kind]) for kind in kinds if kind in self._fds}

    def close(self) -> None:
        """Close every fd that was not popped."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def receive_fds() -> dict[str, InheritedFds]:
    """Return the fds that systemd passed to us, by tunnel name; drop any that we did not store."""
    found: dict[str, InheritedFds] = {}
    for fd, name in notify.inherited_fds():
        key, _, tunnel = name.partition("@")
        kind = _kind(key)
        if tunnel and kind and _is_expected(kind, fd):
            found.setdefault(tunnel, InheritedFds(tunnel)).add(key, fd)
        else:
            log.warning("the fd store held an unexpected fd, '%s': removed", name)
            notify.remove_stored_fd(name)
            os.close(fd)
    return found


def _kind(key: str) -> FdKind | None:
    """Return what an fd is for, by its key; None if we have stored no such fd."""
    if re.fullmatch(rf"{FdKind.LISTENER}\.[0-9]+", key):
        return FdKind.LISTENER
    return FdKind(key) if key in set(FdKind) - {FdKind.LISTENER} else None


def _is_expected(kind: FdKind, fd: int) -> bool:
    if kind in (FdKind.RECORD, FdKind.NEXT_RECORD):
        return fdpath.is_memory(fd)
    return bool(re.fullmatch(_TARGETS[kind], fdpath.target(fd)))


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
