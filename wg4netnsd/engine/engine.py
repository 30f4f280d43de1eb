"""One wireguard-go: spawned, configured, watched by its pidfd, and proven dead before the next."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

from wg4netnsd.aio.lines import LineReader
from wg4netnsd.aio.process import Process
from wg4netnsd.engine import events, rundir, uapi
from wg4netnsd.engine.log import EngineLog
from wg4netnsd.errors import LACKING, EngineFailed, LimitExceeded, Timeout, redact
from wg4netnsd.systemd.journal import TunnelLog

log = logging.getLogger(__name__)

BINARY: Final = Path(__file__).parents[1] / "bin/wireguard-go"
DEATH_TIME: Final = 5.0
"""Seconds that a killed process gets to be gone; more only if the kernel holds it."""
DRAIN_TIME: Final = 1.0  # seconds


@functools.cache
def version(binary: Path) -> str:
    """wireguard-go's own word for its version; empty where it can't be run."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("%s --version: %s", binary, error)
        return ""
    return output.stdout.decode().split("\n")[0].removeprefix("wireguard-go v")


class EngineFds(NamedTuple):
    """The fds by which a daemon holds an engine, or adopts one."""

    pidfd: int
    handover: int
    events: int
    log: int


class Engine:
    """One wireguard-go. Owns its process, its UAPI socket's path, its log and its events.

    It is spawned with nothing to do, and waits: first for its UAPI socket, by which it can then be
    configured, then for its TUN. It lives as long as somebody holds our end of its handover socket.
    """

    def __init__(self, process: Process, fds: EngineFds, socket_path: Path | None = None) -> None:
        """Owns all of them. Call spawn() or adopt() instead."""
        self.on_lack: Callable[[events.Lacks], object] = lambda _: None
        """Called with each part of its confinement that it does without."""
        self.process = process
        self.fds = fds
        self.pid = process.pid
        self.exited = process.exited
        self._handover = socket.socket(fileno=fds.handover)
        self._handover.setblocking(False)
        self._socket_path = socket_path
        self._log = EngineLog(self.pid, fds.log)
        self._events = LineReader(fds.events, self._on_event)
        self._pending: list[events.Event] = []
        self._forward: Callable[[events.Event], None] = self._pending.append
        self._closing = asyncio.create_task(self._close_after_exit())

    @classmethod
    def spawn(cls, binary: Path) -> Self:
        """Start one. Raises EngineFailed, or LimitExceeded where a process or an fd is lacking."""
        with contextlib.ExitStack() as engines, contextlib.ExitStack() as ours:
            try:
                log_end, engines_log_end = _pipe(ours, engines)
                events_end, engines_events_end = _pipe(ours, engines)
                handover, engines_handover = socket.socketpair()
                ours.callback(handover.close)
                engines.callback(engines_handover.close)
                child = _popen(
                    binary, engines_handover.fileno(), engines_events_end, engines_log_end
                )
                ours.callback(child.wait)
                ours.callback(child.kill)
                pidfd = os.pidfd_open(child.pid)
            except OSError as error:
                why = f"wireguard-go can't be started: {error.strerror}"
                raise (LimitExceeded if error.errno in LACKING else EngineFailed)(why) from None
            ours.pop_all()
        return cls(Process(pidfd, child), EngineFds(pidfd, handover.detach(), events_end, log_end))

    @classmethod
    def adopt(cls, fds: EngineFds, socket_path: Path) -> Self:
        """Take over an engine that an earlier daemon spawned. Owns `fds`.

        An engine that has ended meanwhile is noticed as always.
        """
        return cls(Process(fds.pidfd), fds, socket_path)

    def forward_events(self, to: Callable[[events.Event], None], log: TunnelLog) -> None:
        """Call `to` with every event from now on, and with those that waited; log to `log`."""
        self._log.log = log
        self._forward = to
        while self._pending:
            to(self._pending.pop(0))

    async def listen(self, socket_path: Path) -> None:
        """Have it serve UAPI at `socket_path`; who connects before it is ready waits.

        Raises EngineFailed, LimitExceeded.
        """
        with _listen(socket_path) as listener:
            # Ours no longer than this: when the engine dies, whoever is connected learns it.
            self._socket_path = socket_path
            await self._hand_over(listener.fileno())

    async def attach(self, tun_fd: int) -> None:
        """Give it a TUN, whose fd stays the caller's too; return when it is in use.

        Raises EngineFailed, LimitExceeded, Timeout.
        """
        loop = asyncio.get_running_loop()
        await self._hand_over(tun_fd)
        try:
            async with asyncio.timeout(uapi.REPLY_TIME):
                answer = await loop.sock_recv(self._handover, 1)
        except TimeoutError:
            raise Timeout("wireguard-go does not take its TUN") from None
        except ConnectionError:  # it ended with our message unread
            answer = b""
        if not answer:
            raise await self.exit_error()

    async def _hand_over(self, fd: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
        try:
            self._handover.sendmsg([b"\0"], rights)
        except OSError as error:
            if error.errno in LACKING:
                why = f"wireguard-go can't be given a descriptor: {error.strerror}"
                raise LimitExceeded(why) from None
            raise await self.exit_error() from None

    async def configure(self, settings: bytes) -> uapi.DeviceStatus:
        """Send the first `set`, as made by uapi.encode_set(), and return what came of it.

        Raises EngineFailed, Timeout.
        """
        try:
            return uapi.parse_get(await self._request(settings, uapi.GET))
        except uapi.ConnectionLost:
            raise await self.exit_error() from None

    async def set(self, settings: bytes) -> None:
        """Send a further `set`, as made by uapi. Raises EngineFailed, Timeout."""
        await self._request(settings)

    async def set_listen_port(self, port: int, old_port: int) -> None:
        """Have it listen at `port`. Raises EngineFailed: PortInUse where it is still at the old."""
        try:
            await self.set(uapi.encode_listen_port(port))
        except uapi.PortInUse as refusal:
            try:
                await self.set(uapi.encode_listen_port(old_port))  # else it has no socket at all
            except uapi.PortInUse:
                raise EngineFailed("ListenPort: both ports are in use on the host now") from None
            raise refusal from None

    async def status(self) -> uapi.DeviceStatus:
        """Ask the engine for its peers, counters and port. Raises EngineFailed, Timeout."""
        return uapi.parse_get(await self._request(uapi.GET))

    async def _request(self, *texts: bytes) -> bytes:
        return await uapi.request(str(self._socket_path), *texts)

    @property
    def is_ending(self) -> bool:
        """Is one of `fds` closed, and its number perhaps another's?"""
        ends = (self.exited, self._log.ended, self._events.ended)
        return any(end.is_set() for end in ends)

    async def exit_error(self) -> EngineFailed:
        """Why it ended, in its own last words. Status 0 is not "clean": a lost TUN gives it too."""
        await self._wait_drained()
        how = f"wireguard-go {self.process.describe_exit()}"
        return EngineFailed(": ".join([how, *self._log.last_lines]))

    async def stop(self) -> None:
        """Return when the process is gone and its socket's path too; may be called again.

        Raises EngineFailed if the kernel does not let go of it.
        By SIGKILL: wireguard-go has nothing to save, and a hung one takes no other signal.
        """
        try:
            await self.process.kill(DEATH_TIME)
        except TimeoutError:
            # Two engines on one TUN silently lose packets, so nobody may go on from here.
            raise EngineFailed(f"wireguard-go {self.pid} does not die") from None
        await self._wait_drained()
        if self._socket_path:
            rundir.remove_file(self._socket_path)

    async def _wait_drained(self) -> None:
        """Wait for the end of a process that is dying, and for all that it has told."""
        with contextlib.suppress(TimeoutError):
            # It closes its sockets just before its pidfd tells.
            async with asyncio.timeout(DRAIN_TIME):
                await self.exited.wait()
                await self._log.ended.wait()
                await self._events.ended.wait()

    def _on_event(self, line: str) -> None:
        try:
            event = events.parse(line)
        except ValueError:
            self._log.write(logging.WARNING, f"not an event: {redact(line)[:80]!r}")
            event = events.Dropped()
        if isinstance(event, events.Lacks):
            self.on_lack(event)
        else:
            self._forward(event)

    async def _close_after_exit(self) -> None:
        await self.exited.wait()
        self._handover.close()  # not before: attach() may have its end of file yet to read


def _pipe(ours: contextlib.ExitStack, engines: contextlib.ExitStack) -> tuple[int, int]:
    """What we read from, and what the engine writes to."""
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    engines.callback(os.close, writer)
    return reader, writer


def _popen(binary: Path, handover_fd: int, event_fd: int, log_fd: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [binary],
            env={"WG_HANDOVER_FD": str(handover_fd), "WG_EVENT_FD": str(event_fd)},
            pass_fds=(handover_fd, event_fd),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            process_group=0,  # a terminal's Ctrl-C is for the daemon
        )
    except OSError as error:
        if error.errno in LACKING:
            raise
        raise EngineFailed(f"{binary}: {error.strerror}: is wg4netnsd installed whole?") from None


def _listen(path: Path) -> socket.socket:
    try:
        rundir.create(path.parent)
        path.unlink(missing_ok=True)  # of an engine that ended while there was no daemon
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            listener.listen()
            stack.pop_all()
            return listener
    except OSError as error:  # too long a path is an OSError without an errno
        raise EngineFailed(f"{path}: {error.strerror or error}") from None
