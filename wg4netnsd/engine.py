"""One wireguard-go: spawned, configured, watched by its pidfd, and proven dead before the next."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

from wg4netnsd import uapi
from wg4netnsd.errors import EngineFailed, Error, redact

log = logging.getLogger(__name__)

BINARY: Final = Path(__file__).with_name("bin") / "wireguard-go"
DEATH_TIME: Final = 5.0
"""Seconds that a killed process gets to be gone; more only if the kernel holds it."""
MAX_LINE: Final = 4096
LAST_WORDS: Final = 3


@functools.cache
def version() -> str:
    """wireguard-go's own word for its version; empty where it can't be run."""
    try:
        output = subprocess.run([BINARY, "--version"], capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("%s --version: %s", BINARY, error)
        return ""
    return output.stdout.decode().split("\n")[0].removeprefix("wireguard-go v")


class Engine:
    """A running wireguard-go. Owns its process, its UAPI socket's path and its log pipe."""

    def __init__(self, process: subprocess.Popen[bytes], socket_path: Path, log: _Log) -> None:
        self.pid = process.pid
        self.exited = asyncio.Event()
        self._process = process
        self._socket_path = socket_path
        self._log = log
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @classmethod
    def spawn(cls, tun_fd: int, interface: str, socket_path: Path) -> Engine:
        """Start an engine on a TUN fd, which stays the caller's. Raises EngineFailed.

        It listens on its UAPI socket from its first moment: what connects before it is ready waits.
        """
        with contextlib.ExitStack() as stack:
            # Ours only until the engine has it: when it dies, whoever is connected learns it.
            listener = stack.enter_context(_listen(socket_path))
            log_end, engines_end = os.pipe()
            stack.callback(os.close, engines_end)
            try:
                process = _popen(tun_fd, listener.fileno(), engines_end, interface)
            except EngineFailed:
                os.close(log_end)
                _unlink(socket_path)
                raise
        return cls(process, socket_path, _Log(process.pid, log_end))

    async def configure(self, settings: bytes) -> uapi.DeviceStatus:
        """Send the first `set`, as made by uapi.encode_set(), and return what came of it.

        The engine is up once this has returned. Raises EngineFailed, Timeout.
        """
        try:
            await uapi.request(str(self._socket_path), settings)
            return await self.status()
        except EngineFailed:
            with contextlib.suppress(TimeoutError):
                # An engine that dies breaks its connections just before its pidfd tells.
                async with asyncio.timeout(0.1):
                    await self.exited.wait()
            if self.exited.is_set():
                raise await self.obituary() from None
            raise

    async def status(self) -> uapi.DeviceStatus:
        """Ask the engine for its peers, counters and port. Raises EngineFailed, Timeout."""
        return uapi.parse_get(await uapi.request(str(self._socket_path), uapi.GET))

    async def obituary(self) -> EngineFailed:
        """Why it ended, in its own last words. Status 0 is not "clean": a lost TUN gives it too."""
        await self.exited.wait()
        await self._log.ended.wait()
        words = "; ".join(self._log.last_words)
        status = self._process.returncode
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return EngineFailed(f"wireguard-go ended {how}" + (f": {words}" if words else ""))

    async def stop(self) -> None:
        """Return when the process is gone and its socket's path too; may be called again.

        By SIGKILL: wireguard-go has nothing to save, and a hung one takes no other signal.
        """
        if not self.exited.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            try:
                async with asyncio.timeout(DEATH_TIME):
                    await self.exited.wait()
            except TimeoutError:
                # Two engines on one TUN silently lose packets, so nobody may go on from here.
                raise Error(f"wireguard-go {self.pid} does not die") from None
        _unlink(self._socket_path)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()  # a zombie by now, so this returns at once
        self.exited.set()


class _Log:
    """The engine's stdout and stderr: redacted, logged line by line, the last lines kept."""

    def __init__(self, pid: int, fd: int) -> None:
        """Owns `fd` and closes it at its end of file."""
        self.last_words: collections.deque[str] = collections.deque(maxlen=LAST_WORDS)
        self.ended = asyncio.Event()
        self._pid = pid
        self._fd = fd
        self._buffer = b""
        asyncio.get_running_loop().add_reader(fd, self._on_readable)

    def _on_readable(self) -> None:
        data = os.read(self._fd, 65536)
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest[-MAX_LINE:]
        for line in lines:
            text = redact(line[:MAX_LINE].decode(errors="replace"))
            self.last_words.append(text)
            log.info("wireguard-go[%d]: %s", self._pid, text)
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set()


def _popen(tun_fd: int, uapi_fd: int, log_fd: int, interface: str) -> subprocess.Popen[bytes]:
    environment = {
        "WG_TUN_FD": str(tun_fd),
        "WG_UAPI_FD": str(uapi_fd),
        "WG_PROCESS_FOREGROUND": "1",
        "LOG_LEVEL": "error",
    }
    try:
        return subprocess.Popen(
            [BINARY, "-f", interface],
            env=environment,
            pass_fds=(tun_fd, uapi_fd),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            process_group=0,  # a terminal's Ctrl-C is for the daemon
        )
    except OSError as error:
        raise EngineFailed(f"{BINARY}: {error.strerror}: is wg4netnsd installed whole?") from None


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            listener.listen()
            stack.pop_all()
            return listener
    except OSError as error:  # too long a path is an OSError without an errno
        raise EngineFailed(f"{path}: {error.strerror or error}") from None


def _unlink(path: Path) -> None:
    """Remove the socket and its directory; neither need be there any more."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
