"""Sockets of a tunnel's namespace, as a client of the bus gets them."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support import dns
from support.bus import Client
from support.namespaces import Namespace
from support.processes import of_program

SERVER = "wg4netns-socket"
"""The socket server's name; it belongs to the tunnel, and opens its sockets."""


def open_socket(
    client: Client,
    path: str,
    family: int = socket.AF_INET,
    kind: int = socket.SOCK_STREAM,
    protocol: int = 0,
) -> socket.socket:
    """OpenSocket; any time limit is the caller's to set."""
    received = client.tunnel(path, "OpenSocket", "iii", family, kind, protocol)
    opened = socket.socket(fileno=received.to_raw_fd())
    opened.settimeout(30)
    return opened


def netns_of(opened: socket.socket) -> tuple[int, int]:
    """The namespace that a socket is in."""
    fd = fcntl.ioctl(opened, 0x894C)  # SIOCGSKNS
    try:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino
    finally:
        os.close(fd)


def servers() -> set[int]:
    """The socket servers that run."""
    return of_program(SERVER)


@contextlib.contextmanager
def name_server(inside: Namespace, address: str, answer: str) -> "Iterator[subprocess.Popen[str]]":
    """A name server that only programs in the namespace can reach."""
    inside.check("ip", "address", "add", address, "dev", "lo")
    command = [sys.executable, str(Path(dns.__file__)), address, answer]
    with inside.popen(*command, stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.readline() == "listens\n"
        try:
            yield server
        finally:
            server.terminate()
