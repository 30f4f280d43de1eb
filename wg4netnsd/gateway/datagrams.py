"""Datagrams as all UDP rooms of the gateway send and receive them."""

from __future__ import annotations

import socket
from typing import Final

MAX_DATAGRAM: Final = 65535
"""Bytes: UDP has no larger ones."""

BATCH: Final = 32
"""Datagrams of one socket in a row."""


def send_to(sender: socket.socket, data: bytes, address: tuple[str, int] | None = None) -> int:
    """Send a datagram, or drop it if it can't go now; return the bytes sent."""
    try:
        return sender.sendto(data, address) if address else sender.send(data)
    except (
        OSError
    ):  # EAGAIN, EMSGSIZE, ENETUNREACH, ECONNREFUSED of an earlier one: UDP has no answer
        return 0
