"""How a client introduces itself to a bus: SASL, as the D-Bus specification has it.

EXTERNAL is all that a session bus asks for. The kernel tells it our uid (SO_PEERCRED of unix(7)).
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

MAX_LINE: Final = 4096  # bytes


async def authenticate(sock: socket.socket, with_fds: bool) -> None:
    """Say who we are and, `with_fds`, that we take file descriptors; messages may follow.

    Raises OSError, EOFError.
    """
    uid = str(os.geteuid()).encode().hex()
    await _exchange(sock, f"\0AUTH EXTERNAL {uid}", "OK")
    if with_fds:
        await _exchange(sock, "NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD")
    await asyncio.get_running_loop().sock_sendall(sock, b"BEGIN\r\n")


async def _exchange(sock: socket.socket, command: str, expected: str) -> None:
    """Send a command and read the line that answers it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, f"{command}\r\n".encode())
    line = b""
    while not line.endswith(b"\r\n"):  # a bus sends nothing else before the next command
        data = await loop.sock_recv(sock, MAX_LINE)
        if not data or len(line) > MAX_LINE:
            raise EOFError("the bus broke off the authentication")
        line += data
    if line.split()[:1] != [expected.encode()]:
        answer = line[:64].decode(errors="replace").strip()
        raise OSError(f"the bus answers {answer!r}: expected {expected}")
