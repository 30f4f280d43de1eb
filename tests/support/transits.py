"""Tunnels within tunnels, and UDP sockets made elsewhere.

namespace `inner` ── wg0 ── engine ── UDP sockets in namespace `outer` ── wg0 ── engine ── host
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from support.namespaces import Namespace
from support.stage import Stage

# Sends two UDP sockets, or what FAMILIES says, over the socket that is its stdin.
SEND = """
import socket, sys
asker = socket.socket(fileno=0)
sockets = []
for word in sys.argv[1:]:
    family, kind, port = word.split(":")
    made = socket.socket(getattr(socket, f"AF_{family}"), getattr(socket, f"SOCK_{kind}"))
    if family == "INET6":
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if port:
        made.bind(("", int(port)))
    sockets.append(made)
socket.send_fds(asker, [b"+"], [each.fileno() for each in sockets])
"""

UNBOUND = "INET:DGRAM:", "INET6:DGRAM:"


@contextlib.contextmanager
def sockets_of(inside: Namespace | None, *words: str) -> Iterator[list[int]]:
    """Sockets that a process in a namespace, or on the host, has made: FAMILY:KIND:PORT each."""
    command = [sys.executable, "-c", SEND, *(words or UNBOUND)]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            subprocess.run(
                inside.command(*command) if inside else command, stdin=theirs, check=True
            )
        _, fds, _, _ = socket.recv_fds(ours, 1, 8)
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def conf_through(stage: Stage, client: int) -> str:
    """One that reaches the far end from within a tunnel to it."""
    return stage.conf(client, f"{stage.far.ipv4}:51820")
