"""Calls that lead the daemon to a file on a file system that has stalled."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.bus import CREATE, ROOT, Client, DBusError
from support.configs import Secrets
from support.fds import opened
from support.fuse import StallingFiles
from support.processes import children

Call = Callable[[Client, int, str, str], object]
"""Leads to a stalled file by an fd or a path; the last argument is a namespace's path."""


def config_fd(client: Client, fd: int, _path: str, netns: str) -> None:
    with opened(netns) as inside:
        client.manager("CreateTunnel", CREATE, inside, fd, {})


def config_path(client: Client, _fd: int, path: str, netns: str) -> None:
    client.manager("CreateTunnelFromPaths", "ssa{sv}", netns, path, {})


def netns_fd(client: Client, fd: int, _path: str, netns: str) -> None:
    client.manager("CreateTunnel", CREATE, fd, fd, {})


def netns_path(client: Client, _fd: int, path: str, netns: str) -> None:
    client.manager("CreateTunnelFromPaths", "ssa{sv}", path, path, {})


def netns_to_look_up(client: Client, fd: int, _path: str, netns: str) -> None:
    client.manager("GetTunnelByNetns", "h", fd)


def lease(client: Client, fd: int, _path: str, netns: str) -> None:
    options = {"lifetime": ("s", "lease"), "lease": ("h", fd)}
    config = os.memfd_create("config")
    os.write(config, Secrets().conf().encode())
    with opened(netns) as inside:
        client.manager("CreateTunnel", CREATE, inside, config, options)


def one_too_many(client: Client, fd: int, _path: str, netns: str) -> None:
    client.call(ROOT, "org.freedesktop.DBus.Peer", "Ping", "h", [fd])


def new_config_fd(client: Client, fd: int, _path: str, netns: str) -> None:
    tunnel = next(path for _, path, _ in client.tunnels())
    client.tunnel(tunnel, "Reconfigure", "ha{sv}", fd, {})


def new_config_path(client: Client, _fd: int, path: str, netns: str) -> None:
    tunnel = next(path for _, path, _ in client.tunnels())
    client.tunnel(tunnel, "ReconfigureFromPath", "sa{sv}", path, {})


class Caller:
    """A process that makes a call with a file that stalls just before.

    A process of its own: whoever has the file open can neither close it nor start a program.
    """

    def __init__(self, address: str, files: StallingFiles, call: Call, netns: str) -> None:
        self._said, say = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                self._run(say, address, files, call, netns)
            os._exit(0)
        say.close()
        assert self._said.recv(1) == b"o"
        if files.name.startswith("memfd:"):
            files.detach()
        files.stall()
        self._said.send(b"!")
        assert self._said.recv(1) == b"c"

    def _run(
        self, say: socket.socket, address: str, files: StallingFiles, call: Call, netns: str
    ) -> None:
        with Client(address) as client:
            path = str(files.path)
            fd = os.open(path, os.O_RDONLY)
            say.send(b"o")
            say.recv(1)
            say.send(b"c")
            try:
                call(client, fd, path, netns)
                say.send(b"it has succeeded")
            except DBusError as error:
                say.send(error.message.encode())
            signal.pause()

    def answer(self, timeout: float = 30) -> str:
        """What the call has ended with."""
        self._said.settimeout(timeout)
        return self._said.recv(65536).decode()

    def close(self) -> None:
        """Once nothing is stalled any more."""
        self._said.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


@contextmanager
def calling(address: str, call: Call, netns: str, name: str = "wg.conf") -> Iterator[Caller]:
    """The call, with a file that is stalled until the block ends."""
    with ExitStack() as stack:
        files = StallingFiles(name, Secrets().conf().encode())
        caller = Caller(address, files, call, netns)
        stack.callback(caller.close)
        stack.callback(files.close)
        yield caller


def hung(parent: int) -> set[int]:
    """The processes below it that wait for the file system. No signal ends them (fs/fuse/dev.c)."""
    return {pid for each in children(parent) for pid in children(each) if waits(pid)}


def waits(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/wchan").read_text() == "request_wait_answer"
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return False
