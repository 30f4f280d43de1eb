"""At startup: adopt the tunnels of the last daemon, and remove what is left of any others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wg4netnsd import errors
from wg4netnsd.agent import sockets
from wg4netnsd.aio.process import Process
from wg4netnsd.engine.engine import DEATH_TIME
from wg4netnsd.systemd import notify, unit
from wg4netnsd.systemd.fdstore import FdKind, InheritedFds
from wg4netnsd.tunnel import record, resolvconf
from wg4netnsd.tunnel.lifecycle import State
from wg4netnsd.tunnel.lifetime import Lease, Lifetime
from wg4netnsd.tunnel.manager import Manager
from wg4netnsd.tunnel.netns import Netns, NetnsId
from wg4netnsd.tunnel.record import Record, SavedTunnel, Unreadable
from wg4netnsd.tunnel.transit import (
    HostTransit,
    NamespaceTransit,
    PassedTransit,
    Transit,
    TransitKind,
    TunnelTransit,
)
from wg4netnsd.tunnel.tunnel import Tunnel

log = logging.getLogger(__name__)

DECISION_TIME: Final = 3.0
"""Seconds that adopted tunnels get to find their engines, before the daemon answers calls."""

_HELPERS: Final = ("wireguard-go", sockets.PROGRAM.decode(), "wg4netns-gate")
"""The programs of engines, socket servers and gateways."""


async def adopt_tunnels(manager: Manager, inherited: Mapping[str, InheritedFds]) -> list[Tunnel]:
    """Adopt all tunnels that can be; return when their states are known, or after DECISION_TIME."""
    adopted = []
    found = {name: _read_record(name, fds) for name, fds in inherited.items()}
    for name in _outer_first(found):
        fds = inherited[name]
        try:
            adopted.append(_adopt_tunnel(manager, found[name], fds))
        except (Unreadable, errors.Error) as why:
            log.warning("can't be adopted, so it ends: %s", why, extra={"TUNNEL": name})
            await _end_tunnel(fds)
            remove_tunnel_files(manager.directory / name)
    if adopted:
        decided = set(State) - {State.STARTING}
        waits = [asyncio.ensure_future(one.lifecycle.wait_for(decided)) for one in adopted]
        await asyncio.wait(waits, timeout=DECISION_TIME)
        for wait in waits:
            wait.cancel()
    return adopted


def _read_record(name: str, fds: InheritedFds) -> Record | Unreadable:
    """Return a tunnel's record, or the reason why there is none."""
    try:
        written = record.read_newest(fds.pop_records())
    except Unreadable as why:
        return why
    if written.name != name:
        return Unreadable(f"its record is that of another tunnel, {written.name}")
    return written


def _outer_first(found: Mapping[str, Record | Unreadable]) -> list[str]:
    """Return the names of all tunnels, each one after that which is its transit."""
    ordered: dict[str, None] = {}

    def add(name: str, inner: frozenset[str] = frozenset()) -> None:
        written = found.get(name)
        if isinstance(written, Record) and name not in inner:
            add(written.transit.tunnel, inner | {name})
        if written:
            ordered[name] = None

    for name in found:
        add(name)
    return list(ordered)


def _adopt_tunnel(manager: Manager, written: Record | Unreadable, fds: InheritedFds) -> Tunnel:
    """Adopt one tunnel, which owns `fds` if this returns.

    Raises Unreadable, or the reason why the manager refuses it.
    """
    if isinstance(written, Unreadable):
        raise written
    if FdKind.TUN not in fds:
        raise Unreadable("its TUN is missing")
    with contextlib.ExitStack() as stack:
        namespace = Netns(-1, NetnsId(*written.netns))
        stack.callback(namespace.close)
        for fd in fds.pop_fds(FdKind.NETNS) or ():
            namespace.fd = fd
        if lease := _lease(written, fds):
            stack.callback(lease.close)
        transit = _transit(manager, written, fds)
        stack.callback(transit.close)
        saved = SavedTunnel(written, fds)
        tunnel = manager.create(written.spec(), namespace, transit, lease, saved)
        stack.pop_all()
        return tunnel


def _lease(written: Record, fds: InheritedFds) -> Lease | None:
    if written.lifetime is not Lifetime.LEASE:
        return None
    for fd in fds.pop_fds(FdKind.LEASE) or ():
        return Lease(fd)
    raise Unreadable("its lease ended while there was no daemon")  # systemd has closed it


def _transit(manager: Manager, written: Record, fds: InheritedFds) -> Transit:
    match written.transit.kind:
        case TransitKind.HOST:
            return HostTransit()
        case TransitKind.NAMESPACE:
            for fd in fds.pop_fds(FdKind.TRANSIT) or ():
                transit = NamespaceTransit(manager.agent, fd)
                if transit.netns == written.transit.netns:
                    return transit
                transit.close()
            raise Unreadable("its transit namespace is missing, or another one")
        case TransitKind.SOCKETS:
            if FdKind.UDP4 not in fds and FdKind.UDP6 not in fds:
                raise Unreadable("its UDP sockets, which its creator had passed, are missing")
            return PassedTransit()
        case TransitKind.TUNNEL:
            try:
                outer = manager.get_open(written.transit.tunnel)
            except errors.NoSuchTunnel:
                name = written.transit.tunnel
                raise Unreadable(f"its outer tunnel '{name}' ended") from None
            return TunnelTransit(manager.agent, outer)


async def _end_tunnel(fds: InheritedFds) -> None:
    """End a tunnel's engine and interface, and remove its fds from the store."""
    for kind in (FdKind.PIDFD, FdKind.GATEWAY_PIDFD):
        for pidfd in fds.pop_fds(kind) or ():
            await _kill(pidfd)
    fds.remove_all()
    fds.close()


def remove_tunnel_files(directory: Path) -> None:
    """Remove a tunnel's directory, with the socket and the resolv.conf in it.

    Anything else in it is not ours, and stays.
    """
    for path in directory.glob("*.sock"):
        if path.is_socket():
            path.unlink()
    if resolvconf.is_ours(path := directory / resolvconf.NAME):
        path.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()


async def kill_strays(inherited: Mapping[str, InheritedFds]) -> None:
    """Kill the processes in our cgroup that belong to no tunnel; call this before starting any.

    Most end by themselves, because nobody holds the other end of their socket any more. The others
    are stopped or hang. Socket servers belong to none: each daemon starts its own.
    """
    known = set[int]().union(*(fds.pids for fds in inherited.values()))
    for pid in _helpers_in_our_cgroup() - known:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            log.warning("%s %d belongs to no tunnel: killing it", _program(str(pid)), pid)
            await _kill(pidfd)


def _helpers_in_our_cgroup() -> set[int]:
    """Return the PIDs of _HELPERS in our cgroup; empty if it is not that of our unit alone."""
    if not notify.is_supervised() or not unit.name():
        return set()
    found = set()
    # Beside cgroup v1, the unified hierarchy is the second one.
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        with contextlib.suppress(OSError):
            pids = Path(f"{root}{unit.cgroup()}/cgroup.procs").read_text().split()
            found |= {int(pid) for pid in pids if _program(pid) in _HELPERS}
    return found


def _program(pid: str) -> str:
    """Return a process's name. Of an engine's files in /proc, this is one that we may read."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def _kill(pidfd: int) -> None:
    try:
        await Process(pidfd).kill(DEATH_TIME)
    except TimeoutError:
        log.error("a process of ours can't be killed")
