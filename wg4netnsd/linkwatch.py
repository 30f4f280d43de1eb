"""An interface that is somebody else's to rename, take down, move or delete: what becomes of it.

    agent's child ── watch() ──► socket ──► daemon ── LinkWatch ──► changed(status)… gone(why)

The socket hears of the links of one namespace and must not keep that alive. So where the TUN was
opened in a sibling of it, the socket too is the sibling's (NETLINK_LISTEN_ALL_NSID, netlink(7)):
the sibling knows the namespace by a number, its nsid, and is told when that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from wg4netnsd import nlmsg, rtnetlink, tun
from wg4netnsd.nlmsg import (
    NLMSG_ERROR,
    NLMSGHDR,
    RTM_DELLINK,
    RTM_DELNSID,
    RTM_NEWLINK,
    RTMGRP_LINK,
    RTNLGRP_NSID,
)
from wg4netnsd.rtinfo import LinkInfo, nsid_of
from wg4netnsd.rtnetlink import Netlink

SOL_NETLINK = 270  # linux/socket.h
NETLINK_ADD_MEMBERSHIP, NETLINK_LISTEN_ALL_NSID = 1, 8  # linux/netlink.h
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
BPF_LDH_ABS, BPF_LDW_ABS, BPF_JEQ, BPF_RET = 0x28, 0x20, 0x15, 0x06  # linux/bpf_common.h

LOCATE_TRIES: Final = 10


class LinkStatus(NamedTuple):
    name: str
    up: bool


class Watched(NamedTuple):
    """An interface, and the socket that tells what becomes of it after it had this status."""

    fd: int
    ifindex: int
    nsid: int | None
    """The interface's namespace, as the socket's knows it; None if that is the same."""
    status: LinkStatus


class Gone(StrEnum):
    """Why an interface is no longer in its namespace."""

    MOVED = "the interface was moved to another namespace"
    DELETED = "the interface was deleted"
    ENDED = "the namespace has ended"


# ---------------------------------------------------------------- the agent's side


def watch(tun_fd: int, netns: int | None = None) -> Watched:
    """Watch a TUN's interface, which is in the namespace that we are in, or else in `netns`.

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
        status = LinkStatus(found.link.name, found.up)
        return Watched(listening.detach(), found.link.index, nsid, status)


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


# ---------------------------------------------------------------- the daemon's side


class LinkWatch:
    """Calls `changed` when the interface's name or IFF_UP has changed, and `gone`, once, when it
    is no longer in its namespace. Owns the socket until then, or until it is closed.

    Sleeps while nothing happens to this very interface.
    """

    def __init__(
        self,
        watched: Watched,
        tun_fd: int,
        changed: Callable[[LinkStatus], object],
        gone: Callable[[Gone], object],
    ) -> None:
        """To be made in a running event loop; the TUN's fd stays the caller's."""
        self.status = watched.status
        self._ifindex = watched.ifindex
        self._nsid = watched.nsid
        self._tun_fd = tun_fd
        self._changed = changed
        self._gone = gone
        self._socket = socket.socket(fileno=watched.fd)
        asyncio.get_running_loop().add_reader(self._socket, self._on_message)

    def close(self) -> None:
        """Stop watching; may be called again."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _on_message(self) -> None:
        try:
            datagram, ancillary, *_ = self._socket.recvmsg(65536, socket.CMSG_SPACE(4))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._ask_anew()
            return
        # One message; its namespace is told only where it is not the socket's (netlink(7)).
        sender = struct.unpack("i", ancillary[0][2])[0] if ancillary else None
        match understand(datagram, sender, self._ifindex, self._nsid):
            case LinkStatus() as status if status != self.status:
                self.status = status
                self._changed(status)
            case Gone() as why:
                self._end(why)
            case OSError(errno=errno.EINVAL):  # the socket's namespace has no such nsid any more
                self._end(Gone.ENDED)
            case OSError(errno=errno.ENODEV):
                self._end(Gone.DELETED if tun.is_gone(self._tun_fd) else Gone.MOVED)
            case OSError() as refusal:
                raise refusal

    def _ask_anew(self) -> None:
        """Messages were lost. The kernel drops its answer too unless the socket is empty
        (NETLINK_S_CONGESTED).

        To ask about another namespace than the socket's takes CAP_NET_ADMIN there, which we have
        as the owner of its user namespace.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        self._socket.send(rtnetlink.get_link(index=self._ifindex, nsid=self._nsid).encoded)

    def _end(self, why: Gone) -> None:
        self.close()
        self._gone(why)


def understand(
    message: bytes, sender: int | None, ifindex: int, nsid: int | None
) -> LinkStatus | Gone | OSError | None:
    """What a message of namespace `sender` tells of an interface in namespace `nsid`; None for the
    socket's own, which also answers what was asked. An error is such an answer."""
    _, kind, *_ = NLMSGHDR.unpack_from(message)
    if kind == NLMSG_ERROR:
        code = nlmsg.error_of(message)
        return OSError(code, os.strerror(code), f"link {ifindex}")
    if kind == RTM_DELNSID:
        # Other namespaces have their own numbers for others.
        return Gone.ENDED if sender is None and nsid_of(message) == nsid else None
    if kind not in (RTM_NEWLINK, RTM_DELLINK) or sender not in (None, nsid):
        return None
    link = LinkInfo.of(message)
    if (link.family, link.ifindex) != (socket.AF_UNSPEC, ifindex):
        return None
    if kind == RTM_NEWLINK:
        return LinkStatus(link.name, link.up)
    return Gone.MOVED if link.moved else Gone.DELETED
