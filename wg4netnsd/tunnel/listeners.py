"""Listen on the host, for a forward: on addresses, Unix sockets, or sockets that were passed."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
from typing import Final, NamedTuple

from wg4netnsd import errors
from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.tunnel.forward import ForwardSpec

PATH_TIME: Final = 5.0
"""Seconds that a Unix socket's file system gets."""

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the kernel caps it (net.core.somaxconn)."""

_IP: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")


class Address(NamedTuple):
    """Where to listen: a path, or an IP address and a port."""

    host: str
    port: int
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str) -> Address:
    """Parse `127.0.0.1:1080`, `[::1]:1080` or `unix:/path`. Raises InvalidArgs."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        fdpath.refuse_relative(path, "listen")
        if len(os.fsencode(path)) > 107:  # sizeof sun_path, and its NUL
            raise errors.InvalidArgs(f"listen: {text!r}: expected a path of at most 107 bytes")
        return Address("", 0, path)
    if (found := _IP.fullmatch(text)) and int(found[3]) <= 65535:
        with contextlib.suppress(ValueError):
            return Address(str(ipaddress.ip_address(found[1] or found[2])), int(found[3]))
    expected = "expected '127.0.0.1:PORT', '[::1]:PORT' or 'unix:/PATH'"
    raise errors.InvalidArgs(f"listen: {errors.quote(text)}: {expected}")


async def listen(spec: ForwardSpec) -> tuple[list[socket.socket], dict[str, int]]:
    """Listen at each address of a forward of the host's side.

    Return the sockets, which are the caller's, and the paths that were created, with their inodes.
    Raises InvalidArgs, AlreadyExists (an address is in use), LimitExceeded, Timeout.
    """
    kind = socket.SOCK_DGRAM if spec.protocol == "udp" else socket.SOCK_STREAM
    sockets: list[socket.socket] = []
    paths: dict[str, int] = {}
    try:
        for text in spec.listen:
            address = parse_address(text)
            refuse_exposed(spec, address)
            if address.path and spec.protocol == "udp":
                raise errors.InvalidArgs(f"listen: {text!r}: expected an IP address for UDP")
            listener, inode = await _listen(address, kind, text)
            sockets.append(listener)
            if address.path:
                paths[address.path] = inode
    except BaseException:
        for each in sockets:
            each.close()
        await remove_paths(paths)
        raise
    return sockets, paths


def refuse_exposed(spec: ForwardSpec, address: Address) -> None:
    """Raise InvalidArgs if other machines could connect, and the creator didn't say so."""
    if spec.access != "anyone" and not address.is_local:
        raise errors.InvalidArgs(
            f"listen: {address.host}: other machines can connect to it: expected a loopback "
            "address, or access 'anyone'"
        )


async def _listen(
    address: Address, kind: socket.SocketKind, text: str
) -> tuple[socket.socket, int]:
    """Return the listener and, of a path, its inode."""
    try:
        if not address.path:
            return _bind(address, kind), 0
        return await blocking.call(
            PATH_TIME, _bind_path, address.path, discard=lambda bound: bound[0].close()
        )
    except TimeoutError:
        raise errors.Timeout(f"listen: {text}: its file system gave no answer") from None
    except OSError as error:
        why = f"listen: {text}: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            raise errors.AlreadyExists(why) from None
        raise errors.from_os_error(error, why, errors.InvalidArgs) from None


def _bind(address: Address, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        if kind == socket.SOCK_STREAM:
            listener.listen(BACKLOG)
        stack.pop_all()
        return listener


def _bind_path(path: str) -> tuple[socket.socket, int]:
    """Listen on a Unix socket that is the user's alone; nobody can connect before it listens."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _is_in_use(path):
                raise
            os.unlink(path)  # left by a daemon that was killed
            listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
        inode = os.lstat(path).st_ino
        stack.pop_all()
        return listener, inode


def _is_in_use(path: str) -> bool:
    """Return whether there is something else at `path` than a socket nobody listens on."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) != errno.ECONNREFUSED


async def remove_paths(paths: dict[str, int]) -> None:
    """Remove Unix sockets that were created, by their inodes: others may have taken their place."""
    for path, inode in paths.items():
        with contextlib.suppress(TimeoutError, OSError, errors.LimitExceeded):
            await blocking.call(PATH_TIME, _unlink, path, inode)


def _unlink(path: str, inode: int) -> None:
    if os.lstat(path).st_ino == inode:
        os.unlink(path)


def check_passed(spec: ForwardSpec, fds: list[int]) -> list[socket.socket]:
    """Make sockets of the passed fds, and take ownership of all of them, also if this raises.

    Raises InvalidArgs if one does not listen, or is open to others though `access` is not.
    """
    with contextlib.ExitStack() as stack:
        sockets = []
        for index, fd in enumerate(fds):
            if not re.fullmatch(r"socket:\[\d+\]", fdpath.target(fd)):
                for other in fds[index:]:
                    blocking.close(other)
                raise errors.InvalidArgs("listeners: expected listening sockets")
            sockets.append(stack.enter_context(socket.socket(fileno=fd)))
        for each in sockets:
            if not _listens(each, spec.protocol):
                raise errors.InvalidArgs(f"listeners: expected {spec.protocol} sockets that listen")
            if each.family != socket.AF_UNIX:
                host, port, *_ = each.getsockname()
                refuse_exposed(spec, Address(host, port))
        stack.pop_all()
        return sockets


def _listens(listener: socket.socket, protocol: str) -> bool:
    if protocol == "udp":
        internet = listener.family in (socket.AF_INET, socket.AF_INET6)
        return internet and listener.type == socket.SOCK_DGRAM and listener.getsockname()[1] != 0
    known = listener.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    accepts = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return known and listener.type == socket.SOCK_STREAM and bool(accepts)
