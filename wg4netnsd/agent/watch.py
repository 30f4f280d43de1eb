"""Open a socket that reports what becomes of an interface.

The socket hears of the links of one namespace and must not keep that alive. So where the TUN was
opened in a sibling of it, the socket too is the sibling's (NETLINK_LISTEN_ALL_NSID, netlink(7)):
the sibling knows the namespace by a number, its nsid, and is told when that ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import Final

from wg4netnsd.agent.protocol import InterfaceLink
from wg4netnsd.kernel import rtnetlink, tun
from wg4netnsd.kernel.nlmsg import (
    NLMSG_ERROR,
    NLMSGHDR,
    RTM_DELLINK,
    RTM_DELNSID,
    RTM_NEWLINK,
    RTMGRP_LINK,
    RTNLGRP_NSID,
)
from wg4netnsd.kernel.rtnetlink import Netlink

SOL_NETLINK = 270  # linux/socket.h
NETLINK_ADD_MEMBERSHIP, NETLINK_LISTEN_ALL_NSID = 1, 8  # linux/netlink.h
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
BPF_LDH_ABS, BPF_LDW_ABS, BPF_JEQ, BPF_RET = 0x28, 0x20, 0x15, 0x06  # linux/bpf_common.h

LOCATE_TRIES: Final = 10


def open_watch(tun_fd: int, netns: int | None = None) -> tuple[int, InterfaceLink]:
    """Open a socket that reports on a TUN's interface in our own namespace, or else in `netns`.

    The latter takes CAP_NET_BROADCAST in the user namespace that owns `netns`; it is the opener's
    that counts (do_one_broadcast()), so that the socket may be passed on. Raises OSError.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    with (
        socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as listening,
        Netlink() as netlink,
    ):
        listening.bind((0, RTMGRP_LINK))
        nsid = None
        if netns is not None:
            listening.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
            listening.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NSID)
            nsid = netlink.nsid(netns)
        # Only now: of what changes from here on, there is a message.
        found = _locate(netlink, tun_fd, nsid)
        _hear_only_of(listening, found.link.index)
        link = InterfaceLink(found.link.index, nsid, found.link.name, found.up)
        return listening.detach(), link


def _locate(netlink: Netlink, tun_fd: int, nsid: int | None) -> rtnetlink.Found:
    """The TUN's interface. Nothing tells its index but its name, and its owner may rename it."""
    for _ in range(LOCATE_TRIES):
        name = tun.name(tun_fd)
        found = netlink.find(name, nsid) if name else None
        if found and tun.name(tun_fd) == name:
            return found
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), f"link {name}")


def _hear_only_of(listening: socket.socket, index: int) -> None:
    """Have the kernel drop what tells of other links, so that a namespace where containers come
    and go neither wakes us nor fills the socket."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(index))
    program = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions of 8 bytes, and where they are.
    fprog = struct.pack("HP", len(code) // 8, ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def _filter(index: int) -> list[tuple[int, int, int, int]]:
    """In classic BPF: operation, how many to skip if so, how many if not, operand.

    It loads in network byte order, and netlink is in the host's.
    """
    return [
        (BPF_LDH_ABS, 0, 0, 4),  # the message's type
        (BPF_JEQ, 3, 0, socket.htons(RTM_NEWLINK)),
        (BPF_JEQ, 2, 0, socket.htons(RTM_DELLINK)),
        (BPF_JEQ, 3, 0, socket.htons(RTM_DELNSID)),
        (BPF_JEQ, 2, 3, socket.htons(NLMSG_ERROR)),
        (BPF_LDW_ABS, 0, 0, NLMSGHDR.size + 4),  # of struct ifinfomsg: the index
        (BPF_JEQ, 0, 1, socket.htonl(index)),
        (BPF_RET, 0, 0, 0xFFFFFFFF),  # all of it
        (BPF_RET, 0, 0, 0),
    ]
