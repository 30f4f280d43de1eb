"""Descriptors to pass, and messages that no honest client would send."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jeepney import HeaderFields, Message, MessageType

import wg4netnsd
from support.bus import Client, DBusError


@contextlib.contextmanager
def opened(path: str | Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def memfd(content: str | bytes) -> Iterator[int]:
    """A file in memory."""
    fd = os.memfd_create("config")
    with os.fdopen(fd, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        yield fd


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Its read end and its write end; either may be closed before."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def without_fds(
    client: Client, path: str, interface: str, member: str, signature: str, body: tuple[Any, ...]
) -> DBusError:
    """The error that a call gets whose body has indexes for `h` and that brings no descriptor."""
    harmless = signature.replace("h", "u")
    message = client.message(path, interface, member, harmless, body)
    serial = next(client.connection.outgoing_serial)
    data = message.serialise(serial)
    assert data.count(harmless.encode() + b"\0") == 1
    client.connection.sock.sendall(
        data.replace(harmless.encode() + b"\0", signature.encode() + b"\0")
    )
    return _error(client, serial)


def _error(client: Client, serial: int) -> DBusError:
    while True:
        reply: Message = client.connection.receive(timeout=10)
        if reply.header.fields.get(HeaderFields.reply_serial) == serial:
            assert reply.header.message_type is MessageType.error
            return DBusError(reply.header.fields[HeaderFields.error_name], reply.body[0])


def udp_port_in_use() -> tuple[socket.socket, int]:
    """A socket of ours, and its port."""
    bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    bound.bind(("::", 0))
    return bound, bound.getsockname()[1]


def copied_package(directory: Path) -> Path:
    """A copy of the installed package to break; its parent is for PYTHONPATH."""
    return Path(shutil.copytree(Path(wg4netnsd.__file__).parent, directory / "copy/wg4netnsd"))


def changed_package(directory: Path, module: str, line: str, instead: str) -> Path:
    """A copy with something else in place of one line of a module."""
    package = copied_package(directory)
    source = (package / module).read_text()
    assert source.count(line) == 1
    (package / module).write_text(source.replace(line, instead))
    return package
