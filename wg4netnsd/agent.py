"""The agent: enters a caller's network namespace and makes the TUN there.

    daemon ── control socket ──► agent ──fork──► child, one a request
                                                   enter → open → (fd back) → configure → exit

setns() to a user namespace needs a single-threaded process (setns(2)), and what has entered one
can't come back. So the daemon forks the agent before it starts an event loop or a thread, and the
agent forks one child for each request. The child is forked ahead of its request: only the request
itself then lies between the caller and the interface.

The agent never holds a secret: it is forked before the first configuration is read, and a request
has a name, an MTU, addresses and routes. It imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from typing import Any, Final, NamedTuple, NoReturn

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

REQUEST_TIME: Final = 30
"""Seconds after which a child that is stuck in the kernel gives up."""

PATIENCE: Final = 0.02
"""Seconds that a child gets for itself; it needs a tenth of that."""

RETRY_TIME: Final = 0.2  # seconds

TUN_DEVICE: Final = "/dev/net/tun"

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
NS_GET_USERNS, NS_GET_NSTYPE = 0xB701, 0xB703  # linux/nsfs.h
PR_SET_DUMPABLE, PR_SET_NAME = 4, 15  # linux/prctl.h
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0001, 0x1000, 0x4000, 0x8000
IFF_UP = 1  # linux/if.h
IN6_ADDR_GEN_MODE_NONE = 1  # linux/if_link.h
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1  # linux/rtnetlink.h
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
ACKS_AT_ONCE = 64  # an ack takes 768 bytes of a receive buffer of 212,992

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel said no. `error` is the name of an exception in wg4netnsd.errors."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


# ---------------------------------------------------------------- the daemon's side


class Agent(NamedTuple):
    """What the daemon holds of it."""

    pid: int
    control: socket.socket

    def end(self) -> None:
        """Close the socket, which ends the agent, and wait for that."""
        self.control.close()
        os.waitpid(self.pid, 0)


def fork() -> Agent:
    """Fork the agent. To be called before the process has a second thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _exit_after(_serve, theirs)
    theirs.close()
    return Agent(pid, ours)


# ---------------------------------------------------------------- the agent


def _exit_after(function: Any, *args: Any) -> NoReturn:
    """Run `function` as all that is left of a forked process: no atexit, no parent's `finally`."""
    status = 1
    try:
        function(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(control: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the daemon
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prctl(PR_SET_NAME, b"wg4netns-agent")
    # Once in a caller's user namespace, whoever is root there could ptrace us; see ptrace(2).
    prctl(PR_SET_DUMPABLE, 0)
    _warm_up()
    while _fork_ahead(control):
        pass
    _reap()


def _fork_ahead(control: socket.socket) -> bool:
    """Fork a child, wait until it has its request. False when the daemon is gone."""
    taken, announce = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(taken)
        os.close(announce)
        return _try_again(f"fork: {error.strerror}")
    if child == 0:
        os.close(taken)
        _exit_after(_child, control, announce)
    os.close(announce)
    announced = os.read(taken, 1)
    if announced:
        # Its end of file is the child's end. To fork beside it would slow it down; to wait for
        # longer, the next request.
        select.select([taken], [], [], PATIENCE)
    os.close(taken)
    if not announced:
        _, status = os.waitpid(child, 0)
        # Not 0: killed, as by the kernel where memory is short, or a defect of ours.
        return status != 0 and _try_again(f"a child ended with status {status}")
    _reap()
    return True


def _try_again(why: str) -> bool:
    print(f"wg4netns-agent: {why}", file=sys.stderr)
    time.sleep(RETRY_TIME)  # nothing tells when there is memory or a free pid again
    return True


def _reap() -> None:
    """Collect the children that have ended since; SIGCHLD ignored would hide them from waitpid."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _warm_up() -> None:
    """Run what a request will run: pyroute2 builds its encoders at first use, and a fresh child has
    to copy every page that it touches. Takes a millisecond that nobody waits for."""
    _messages(Request("lo", 1420, ["192.0.2.1/32", "2001:db8::1/128"], ["0.0.0.0/0", "::/0"]), 1)


def _child(control: socket.socket, announce: int) -> None:
    _warm_up()
    # recv_fds() of Python 3.11 ignores its flags, hence recvmsg().
    data, ancillary, *_ = control.recvmsg(1, socket.CMSG_SPACE(2 * 4), socket.MSG_CMSG_CLOEXEC)
    if not data:
        return  # the daemon has closed its end
    os.write(announce, b"\0")
    control.close()
    signal.alarm(REQUEST_TIME)
    (_, _, fds), *_ = ancillary
    netns, connection = struct.unpack("2i", fds)
    _answer(socket.socket(fileno=connection), netns)


def _answer(connection: socket.socket, netns: int) -> None:
    with connection.makefile("rb") as stream:
        request = Request(**json.load(stream))
    with contextlib.suppress(ConnectionError):  # the daemon has given up: so do we
        try:
            _carry_out(request, netns, connection)
        except ConnectionError:
            raise
        except Refused as refusal:
            _send(connection, {"error": refusal.error, "text": str(refusal)})
        except OSError as error:
            text = ": ".join(filter(None, (error.filename, error.strerror or str(error))))
            _send(connection, {"error": "TunFailed", "text": text})


def _carry_out(request: Request, netns: int, connection: socket.socket) -> None:
    enter(netns)
    tun = open_tun(request.interface)
    _send(connection, {"tun": request.interface}, tun)
    os.close(tun)  # the daemon's from here on: when it lets go, the interface is gone
    configure(request)
    _send(connection, {"done": request.interface})


def _send(connection: socket.socket, message: dict[str, str], *fds: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    connection.sendmsg([json.dumps(message).encode() + b"\n"], ancillary if fds else [])


# ---------------------------------------------------------------- the five verbs


class Request(NamedTuple):
    """What a child is asked for; addresses and routes are in CIDR notation."""

    interface: str
    mtu: int
    addresses: list[str]
    routes: list[str]


def enter(netns: int) -> None:
    """Enter the user namespace that owns `netns`, then `netns` itself.

    In the owning user namespace we have every capability, as our euid created it or an ancestor of
    it (user_namespaces(7)).
    """
    try:
        userns = ioctl(netns, NS_GET_USERNS, 0, "NS_GET_USERNS")
        setns(userns, CLONE_NEWUSER)
        setns(netns, CLONE_NEWNET)
    except OSError as error:
        # EPERM: outside our own user namespaces. EINVAL: the owner is the one that we are in.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise Refused(
            "InvalidNetns",
            "the namespace's owner is not a user namespace of yours: "
            "expected one made without privilege, as by 'unshare -Urn'",
        ) from None


def open_tun(name: str) -> int:
    """Make the interface `name` in the namespace that we are in; it lives as long as the fd.

    IFF_VNET_HDR lets segmentation and checksum offload reach the engine: five times the throughput.
    IFF_TUN_EXCL, since without it TUNSETIFF would attach us to somebody's persistent TUN.
    """
    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        text = f"{TUN_DEVICE}: {error.strerror}: expected the tun module and a node of mode 0666"
        raise Refused("TunFailed", text) from None
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
    try:
        # struct ifreq: a name of 16 bytes, then a union of 24 that begins with the flags.
        ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags), f"TUNSETIFF {name}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        text = f"the namespace already has an interface '{name}'"
        raise Refused("AlreadyExists", text) from None
    return fd


def configure(request: Request) -> None:
    """Give the interface all that makes it useful, and bring it and `lo` up."""
    index = socket.if_nametoindex(request.interface)
    messages = _messages(request, index)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        for start in range(0, len(messages), ACKS_AT_ONCE):
            _apply(netlink, messages[start : start + ACKS_AT_ONCE])


# ---------------------------------------------------------------- rtnetlink(7)


class _Message(NamedTuple):
    operation: str
    encoded: bytes


def _apply(netlink: socket.socket, messages: list[_Message]) -> None:
    """One send for all; the kernel works in order and acknowledges each."""
    netlink.send(b"".join(message.encoded for message in messages))
    for message in messages:
        # struct nlmsghdr, then struct nlmsgerr's int: 0 or a negative errno.
        code = -struct.unpack_from("=i", netlink.recv(65536), 16)[0]
        if code:
            raise OSError(code, os.strerror(code), message.operation)


def _messages(request: Request, index: int) -> list[_Message]:
    return list(_configuration(request, index))


def _configuration(request: Request, index: int) -> Iterator[_Message]:
    name = request.interface
    yield _encode("link lo up", ifinfmsg(), RTM_NEWLINK, index=1, flags=IFF_UP, change=IFF_UP)
    yield _encode(
        f"MTU {request.mtu} on {name}",
        ifinfmsg(),
        RTM_NEWLINK,
        index=index,
        attrs=[("IFLA_MTU", request.mtu)],
    )
    if os.path.exists("/proc/net/if_inet6"):  # where IPv6 is not switched off
        # No link-local address, as the kernel's own WireGuard has none: its router solicitations
        # would start handshakes that nobody asked for.
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]}
        spec = {"attrs": [("AF_INET6", mode)]}
        attrs = [("IFLA_AF_SPEC", spec)]
        yield _encode(f"addrgenmode on {name}", ifinfmsg(), RTM_NEWLINK, index=index, attrs=attrs)
    for address in map(ip_interface, request.addresses):
        yield _encode(
            f"address {address} on {name}",
            ifaddrmsg(),
            RTM_NEWADDR,
            NLM_F_CREATE | NLM_F_EXCL,
            family=_family(address.version),
            prefixlen=address.network.prefixlen,
            index=index,
            attrs=[("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))],
        )
    yield _encode(f"link {name} up", ifinfmsg(), RTM_NEWLINK, index=index, flags=1, change=1)
    for network in map(ip_network, request.routes):
        target = [("RTA_DST", str(network.network_address))] if network.prefixlen else []
        yield _encode(
            f"route {network} dev {name}",
            rtmsg(),
            RTM_NEWROUTE,
            NLM_F_CREATE | NLM_F_EXCL,
            family=_family(network.version),
            dst_len=network.prefixlen,
            table=RT_TABLE_MAIN,
            proto=RTPROT_STATIC,
            scope=RT_SCOPE_LINK if network.version == 4 else RT_SCOPE_UNIVERSE,
            type=RTN_UNICAST,
            attrs=[*target, ("RTA_OIF", index)],
        )


def _encode(operation: str, message: Any, kind: int, create: int = 0, **fields: Any) -> _Message:
    for field, value in fields.items():
        message[field] = value
    message["header"] = {
        "type": kind,
        "flags": NLM_F_REQUEST | NLM_F_ACK | create,
        "sequence_number": 0,
        "pid": 0,
    }
    message.encode()
    return _Message(operation, bytes(message.data))


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


# ---------------------------------------------------------------- syscalls


def ioctl(fd: int, request: int, argument: int | bytes, operation: str) -> int:
    """ioctl(2), whose OSError names the operation. Returns an fd for some requests, else 0."""
    try:
        result = fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, operation) from None
    return result if isinstance(result, int) else 0  # a bytes argument comes back changed


def setns(fd: int, nstype: int) -> None:
    """setns(2); Python has it from 3.12 on."""
    if _libc.setns(fd, nstype) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


def prctl(option: int, argument: int | bytes) -> None:
    """prctl(2) with one argument."""
    pointer = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc.prctl(option, pointer, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl")
