"""Open a socket that reports what happens to an interface.

The socket hears of the links of one namespace and must not keep that alive. So if the TUN was
opened in a sibling namespace, the socket is opened there too (NETLINK_LISTEN_ALL_NSID, netlink(7)):
the sibling knows the interface's namespace by a number, its nsid, and hears when that ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import Final

from wg4netnsd.agent.protocol import InterfaceLink
from wg4netnsd.kernel import tun
from wg4netnsd.kernel.messages import NLMSGHDR, LinkInfo
from wg4netnsd.kernel.pyroute import netlink, rtnl
from wg4netnsd.kernel.rtnetlink import Netlink

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
BPF_LDH_ABS, BPF_LDW_ABS, BPF_JEQ, BPF_RET = 0x28, 0x20, 0x15, 0x06  # linux/bpf_common.h

FIND_TRIES: Final = 10


def open_watch(tun_fd: int, netns: int | None = None) -> tuple[int, InterfaceLink]:
    """Open a socket that reports on a TUN's interface in our own namespace, or else in `netns`.

    The latter takes CAP_NET_BROADCAST in the user namespace that owns `netns`. The kernel checks
    the opener's (do_one_broadcast()), so the socket may be passed on. Raises OSError.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    with (
        socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as listening,
        Netlink() as asking,
    ):
        listening.bind((0, rtnl.RTMGRP_LINK))
        nsid = None
        if netns is not None:
            for option, value in (
                (netlink.NETLINK_LISTEN_ALL_NSID, 1),
                (netlink.NETLINK_ADD_MEMBERSHIP, rtnl.RTNLGRP_NSID),
            ):
                listening.setsockopt(netlink.SOL_NETLINK, option, value)
            nsid = asking.nsid(netns)
        # Last, as the socket now reports every change after this answer.
        link = _find_link(asking, tun_fd, nsid)
        _attach_filter(listening, link.ifindex)
        return listening.detach(), link


def _find_link(asking: Netlink, tun_fd: int, nsid: int | None) -> InterfaceLink:
    """Find a TUN's interface by its name, the only thing that the TUN tells; its owner may be
    renaming it."""
    for _ in range(FIND_TRIES):
        name = tun.name(tun_fd)
        answer = asking.find(name, nsid) if name else None
        if answer and tun.name(tun_fd) == name:
            link = LinkInfo.of(answer)
            return InterfaceLink(link.ifindex, nsid, link.name, link.up)
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), f"link {name}")


def _attach_filter(listening: socket.socket, index: int) -> None:
    """Have the kernel drop messages about other links: in a namespace where containers come and go
    they would wake us and fill the socket."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(index))
    program = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, of 8 bytes each, and their address.
    fprog = struct.pack("HP", len(code) // 8, ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def _filter(index: int) -> list[tuple[int, int, int, int]]:
    """Return classic BPF: each operation, how many to skip if it is true and if false, operand.

    BPF loads numbers in network byte order, and netlink's are in the host's.
    """
    return [
        (BPF_LDH_ABS, 0, 0, 4),  # the message's type
        (BPF_JEQ, 3, 0, socket.htons(rtnl.RTM_NEWLINK)),
        (BPF_JEQ, 2, 0, socket.htons(rtnl.RTM_DELLINK)),
        (BPF_JEQ, 3, 0, socket.htons(rtnl.RTM_DELNSID)),
        (BPF_JEQ, 2, 3, socket.htons(netlink.NLMSG_ERROR)),
        (BPF_LDW_ABS, 0, 0, NLMSGHDR.size + 4),  # the index, in struct ifinfomsg
        (BPF_JEQ, 0, 1, socket.htonl(index)),
        (BPF_RET, 0, 0, 0xFFFFFFFF),  # keep the message
        (BPF_RET, 0, 0, 0),  # drop it
    ]
