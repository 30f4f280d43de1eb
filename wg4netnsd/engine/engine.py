"""One wireguard-go process: spawn it, configure it, give it a TUN, and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from wg4netnsd.aio.lines import LineReader
from wg4netnsd.aio.process import Process
from wg4netnsd.engine import events, rundir, uapi
from wg4netnsd.engine.log import EngineLog
from wg4netnsd.errors import SHORTAGE, EngineFailed, LimitExceeded, Timeout, from_os_error, redact
from wg4netnsd.kernel import rights
from wg4netnsd.systemd.journal import TunnelLog

log = logging.getLogger(__name__)

BINARY: Final = Path(__file__).parents[1] / "bin/wireguard-go"
DEATH_TIME: Final = 5.0
"""Seconds until a killed process is gone; it takes longer only if the kernel holds it."""
DRAIN_TIME: Final = 1.0  # seconds


@functools.cache
def version(binary: Path) -> str:
    """Return wireguard-go's version as it prints it, or "" if it can't be run."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("%s --version: %s", binary, error)
        return ""
    return output.stdout.decode().split("\n")[0].removeprefix("wireguard-go v")


class EngineFds(NamedTuple):
    """The fds by which a daemon controls an engine, or adopts one."""

    pidfd: int
    handover: int
    events: int
    log: int


class Engine:
    """One wireguard-go. Owns its process, its UAPI socket's path, its log and its events.

    A spawned engine waits: first for its UDP sockets, then for its UAPI socket, through which it is
    configured, and then for its TUN. After that it may get other UDP sockets. It ends when nobody
    holds our end of its handover socket any more.
    """

    def __init__(self, process: Process, fds: EngineFds, socket_path: Path | None = None) -> None:
        """Take ownership of all arguments. Call spawn() or adopt() instead."""
        self.on_lack: Callable[[events.Lack], object] = lambda _: None
        """Called with each part of its sandbox that the engine runs without."""
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
        """Start an engine. Raises EngineFailed, or LimitExceeded for want of a process or an fd."""
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
                raise from_os_error(error, why, EngineFailed) from None
            ours.pop_all()
        return cls(Process(pidfd, child), EngineFds(pidfd, handover.detach(), events_end, log_end))

    @classmethod
    def adopt(cls, fds: EngineFds, socket_path: Path) -> Self:
        """Adopt an engine that an earlier daemon spawned. Owns `fds`.

        The engine may have ended meanwhile; `exited` is set then, as for any engine.
        """
        return cls(Process(fds.pidfd), fds, socket_path)

    def forward_events(self, to: Callable[[events.Event], None], log: TunnelLog) -> None:
        """Call `to` with every event from now on, and with pending ones; log to `log`."""
        self._log.log = log
        self._forward = to
        while self._pending:
            to(self._pending.pop(0))

    async def listen(self, udp_fds: Sequence[int], socket_path: Path) -> None:
        """Pass the engine its UDP sockets, and have it serve UAPI at `socket_path`.

        Early connections wait until it is ready. `udp_fds` stay the caller's. Raises EngineFailed,
        LimitExceeded.
        """
        await self._hand_over(*udp_fds)
        with _listen(socket_path) as listener:
            # We close our copy of the listener, so that clients notice when the engine dies.
            self._socket_path = socket_path
            await self._hand_over(listener.fileno())

    async def attach(self, tun_fd: int) -> None:
        """Pass a TUN to the engine, and return when the engine uses it.

        `tun_fd` stays the caller's. Raises EngineFailed, LimitExceeded, Timeout.
        """
        await self._hand_over(tun_fd)
        await self._wait_taken("attach its TUN")

    async def use_sockets(self, udp_fds: Sequence[int]) -> None:
        """Have an attached engine use other UDP sockets, and return when it does.

        `udp_fds` stay the caller's. Raises EngineFailed, LimitExceeded, Timeout.
        """
        await self._hand_over(*udp_fds)
        await self._wait_taken("use its UDP sockets")

    async def _wait_taken(self, what: str) -> None:
        """Wait until the engine has done `what`, which it answers with one byte."""
        try:
            async with asyncio.timeout(uapi.REPLY_TIME):
                answer = await asyncio.get_running_loop().sock_recv(self._handover, 1)
        except TimeoutError:
            raise Timeout(f"wireguard-go did not {what} within {uapi.REPLY_TIME:g} s") from None
        except ConnectionError:  # it ended without reading our message
            answer = b""
        if not answer:
            raise await self.exit_error()

    async def _hand_over(self, *fds: int) -> None:
        try:
            rights.send(self._handover, b"\0", fds)
        except OSError as error:
            if error.errno in SHORTAGE:
                why = f"can't pass a file descriptor to wireguard-go: {error.strerror}"
                raise LimitExceeded(why) from None
            raise await self.exit_error() from None

    async def configure(self, settings: bytes) -> uapi.DeviceStatus:
        """Send a `set` of uapi.encode_set() or encode_change(), and return the status after it.

        Raises EngineFailed, Timeout.
        """
        try:
            return uapi.parse_get(await self._request(settings, uapi.GET))
        except uapi.ConnectionLost:
            raise await self.exit_error() from None

    async def set(self, settings: bytes) -> None:
        """Send any other `set`. Raises EngineFailed, Timeout."""
        await self._request(settings)

    async def status(self) -> uapi.DeviceStatus:
        """Return the engine's peers, counters and port. Raises EngineFailed, Timeout."""
        return uapi.parse_get(await self._request(uapi.GET))

    async def _request(self, *texts: bytes) -> bytes:
        return await uapi.request(str(self._socket_path), *texts)

    @property
    def is_ending(self) -> bool:
        """Whether one of `fds` is closed already, so that its number may be another file's."""
        ends = (self.exited, self._log.ended, self._events.ended)
        return any(end.is_set() for end in ends)

    async def exit_error(self) -> EngineFailed:
        """Return the error that says how the engine ended, with the last lines of its log.

        Exit status 0 is an error too: the engine exits with it when its TUN is gone.
        """
        await self._wait_drained()
        how = f"wireguard-go {self.process.describe_exit()}"
        return EngineFailed(": ".join([how, *self._log.last_lines]))

    async def stop(self) -> None:
        """Kill the engine, and return when it and its socket's path are gone. Repeats are no-ops.

        SIGKILL, because wireguard-go has nothing to save, and a hung one heeds no other signal.
        Raises EngineFailed if the kernel does not let go of the process.
        """
        try:
            await self.process.kill(DEATH_TIME)
        except TimeoutError:
            # Two engines on one TUN silently lose packets, so there must be no other engine now.
            raise EngineFailed(f"wireguard-go {self.pid} can't be killed") from None
        await self._wait_drained()
        if self._socket_path:
            rundir.remove_file(self._socket_path)

    async def _wait_drained(self) -> None:
        """Wait for the end of a dying process, and for the rest of its log and events."""
        with contextlib.suppress(TimeoutError):
            # Its sockets close just before its pidfd becomes readable.
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
        if isinstance(event, events.Lack):
            self.on_lack(event)
        else:
            self._forward(event)

    async def _close_after_exit(self) -> None:
        await self.exited.wait()
        self._handover.close()  # not earlier: attach() may still wait for its end of file


def _pipe(ours: contextlib.ExitStack, engines: contextlib.ExitStack) -> tuple[int, int]:
    """Open a pipe; return our end to read from, and the engine's to write to."""
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    engines.callback(os.close, writer)
    return reader, writer


def environment(handover_fd: int, event_fd: int) -> dict[str, str]:
    """An engine's environment: it finds its fds by these variables."""
    return {"WG_HANDOVER_FD": str(handover_fd), "WG_EVENT_FD": str(event_fd)}


def _popen(binary: Path, handover_fd: int, event_fd: int, log_fd: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [binary],
            env=environment(handover_fd, event_fd),
            pass_fds=(handover_fd, event_fd),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            process_group=0,  # a terminal's Ctrl-C is for the daemon only
        )
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        raise EngineFailed(
            f"{binary}: {error.strerror}: is wg4netnsd completely installed?"
        ) from None


def _listen(path: Path) -> socket.socket:
    try:
        rundir.create(path.parent)
        path.unlink(missing_ok=True)  # left by an engine that ended while there was no daemon
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            listener.listen()
            stack.pop_all()
            return listener
    except OSError as error:  # for a path that is too long, an OSError without errno
        raise EngineFailed(f"{path}: {error.strerror or error}") from None
