"""Whose a socket of this machine is: sock_diag(7).

The structures are of linux/inet_diag.h, encoded here by hand: pyroute2's would bring two hundred
modules into the gateway, whose memory counts.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
NLM_F_REQUEST: Final = 1
NLMSG_ERROR: Final = 2
KERNEL_PORT: Final = 0
TCP_LISTEN: Final = 10  # net/tcp_states.h
ALL_STATES: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# struct inet_diag_req_v2: family, protocol, extensions, padding, states; and its sockid: ports,
# addresses, interface, cookie (all ones is INET_DIAG_NOCOOKIE).
_REQUEST: Final = struct.Struct("=BBBxI2s2s16s16sI8s")
# struct inet_diag_msg: family, state, timer, retransmits, the same sockid, expiry, queues, uid,
# inode.
_ANSWER: Final = struct.Struct("=BBBB2s2s16s16sI8sIIIII")

_V4_MAPPED: Final = b"\0" * 10 + b"\xff\xff"

Address = tuple[str, int]


class SockDiag:
    """Asks the kernel about sockets of the network namespace that we are in."""

    def __init__(self) -> None:
        """Raises OSError."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)
        # With the kernel as its peer the socket takes messages of nobody else (netlink_unicast()).
        self._socket.connect((KERNEL_PORT, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def uid_of(self, protocol: int, local: Address, remote: Address) -> int | None:
        """Return the uid of the socket with these ends, of IPPROTO_TCP or IPPROTO_UDP.

        A UDP socket that is not connected is found by its local end. None if there is no such
        socket here, or its owner has closed it. Raises OSError.
        """
        family, local_ip, local_port = _packed(local)
        _, remote_ip, remote_port = _packed(remote)
        near, far = (local_port, local_ip), (remote_port, remote_ip)
        if protocol == socket.IPPROTO_UDP:
            # udp_dump_one() has the two the other way round, "for historical reasons".
            near, far = far, near
        body = _REQUEST.pack(
            *(family, protocol, 0, ALL_STATES),
            *(near[0], far[0], near[1], far[1], 0, b"\xff" * 8),
        )
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        return self._answer(local_port)

    def _answer(self, port: bytes) -> int | None:
        while True:  # the kernel has answered by the time that send() returns
            answer = self._socket.recv(8192)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence != self._sequence:
                continue  # of a request whose answer was late
            if kind == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", answer, _HEADER.size)
                if -code == errno.ENOENT:
                    return None
                raise OSError(-code, os.strerror(-code), "sock_diag")
            _, state, _, _, found_port, *_, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
            # Where there is no such connection, inet_lookup() goes on to whoever listens there. A
            # socket that its owner has closed has no inode any more, and 0 in place of its uid.
            if state == TCP_LISTEN or found_port != port or not inode:
                return None
            return int(uid)


def _packed(address: Address) -> tuple[int, bytes, bytes]:
    """Return an address as the kernel has it: its family, 16 bytes of it, and the port."""
    text, number = address
    port = number.to_bytes(2, "big")
    if ":" not in text:
        return socket.AF_INET, socket.inet_pton(socket.AF_INET, text).ljust(16, b"\0"), port
    packed = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    if packed.startswith(_V4_MAPPED):  # an IPv4 connection of an IPv6 socket
        return socket.AF_INET, packed[12:].ljust(16, b"\0"), port
    return socket.AF_INET6, packed, port
