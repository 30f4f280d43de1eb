"""The agent: enters a caller's network namespace and makes the TUN there, or changes it.

    daemon ── control socket ──► agent ──fork──► child, one a request
                                                   enter → open → (fd back) → configure → exit
                                                   enter → change → exit
                                                   enter → serve sockets until nobody asks any more

setns() to a user namespace needs a single-threaded process (setns(2)), and what has entered one
can't come back. So the daemon forks the agent before it starts an event loop or a thread, and the
agent forks one child for each request. The child is forked ahead of its request: only the request
itself then lies between the caller and the interface.

The agent never holds a secret: it is forked before the first configuration is read, and a request
has a name, MTUs, addresses and routes. It imports nothing of ours but what works beside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from typing import Final

from wg4netnsd.agent import interface, sockets, udp
from wg4netnsd.agent.obstacles import InterfaceError
from wg4netnsd.agent.protocol import (
    Answer,
    ChangeInterface,
    CreateInterface,
    Done,
    InterfaceSettings,
    OpenUdpSockets,
    Refusal,
    Request,
    ServeSockets,
    SocketServer,
    WatchInterface,
    decode_request,
    encode,
)
from wg4netnsd.kernel import rights
from wg4netnsd.kernel.forks import exit_after, fork_server, keep_only
from wg4netnsd.kernel.rtnetlink import LinkRef, Netlink
from wg4netnsd.kernel.syscalls import PR_SET_DUMPABLE, PR_SET_NAME, prctl

REQUEST_TIME: Final = 120
"""Seconds after which a child that is stuck in the kernel gives up. The largest request takes 10 s,
and a busy machine makes more of that; the daemon ends one earlier if its caller's time is over."""

PATIENCE: Final = 0.02
"""Seconds that a child gets for itself; it needs a tenth of that, unless it moves an interface."""

TAKEN: Final = b"+"
"""What a child says once it has its request."""

ENDED: Final = b"-"
"""What it says when the daemon is gone."""


class _NoChild(Exception):
    """There is none to give the next request to."""


def fork() -> tuple[int, socket.socket]:
    """Fork the agent; return its pid and the socket that takes requests to it.

    Call this before the process has a second thread.
    """
    return fork_server(_serve)


def _serve(control: socket.socket) -> None:
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115  it may have been another fd
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the daemon
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prctl(PR_SET_NAME, b"wg4netns-agent")
    # Once in a caller's user namespace, whoever is root there could ptrace us; see ptrace(2).
    prctl(PR_SET_DUMPABLE, 0)
    _rehearse()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children are nobody's to collect
    asked = False
    while True:
        try:
            if _fork_ahead(control) == ENDED:
                return
            asked = False
        except _NoChild as reason:
            if asked and not _refuse(control, reason):
                return
            # Nothing tells when there is memory or a free pid again: see when one is needed.
            asked = bool(select.select([control], [], [])[0])


def _fork_ahead(control: socket.socket) -> bytes:
    """Fork a child and wait until it says TAKEN or ENDED.

    Raises _NoChild, with the request still to be taken.
    """
    announced, announce = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(announced)
        os.close(announce)
        raise _NoChild(f"fork: {error.strerror}") from None
    if child == 0:
        os.close(announced)
        exit_after(_child, control, announce)
    os.close(announce)
    said = os.read(announced, 1)
    if said == TAKEN:
        # Its end of file is the child's end. To fork beside it would slow it down; to wait for
        # longer, the next request.
        select.select([announced], [], [], PATIENCE)
    os.close(announced)
    if not said:  # killed, as by the kernel where memory is short, or a defect of ours
        raise _NoChild("fork: the child ended before it had a request")
    return said


def _refuse(control: socket.socket, reason: _NoChild) -> bool:
    """Answer a request in place of a child. False when the daemon is gone."""
    print(f"wg4netns-agent: {reason}", file=sys.stderr)
    received = _take(control)
    if not received:
        return False
    fd, connection = received
    os.close(fd)
    with connection:
        connection.settimeout(REQUEST_TIME)
        with contextlib.suppress(OSError):  # it has given up
            # First to its end: closed with something unread, the daemon could not send it.
            while connection.recv(65536):
                pass
            _send(connection, Refusal("LimitExceeded", str(reason)))
    return True


def _rehearse() -> None:
    """Do what a request will ask for, as far as it changes nothing: a fresh child has to copy
    every page that it touches, and nobody waits for it yet."""
    ours, theirs = socket.socketpair()
    settings = InterfaceSettings(1420, ["192.0.2.1/32", "2001:db8::1/128"], ["0.0.0.0/0", "::/0"])
    with ours, theirs:
        ours.sendall(encode(CreateInterface("wg0", settings)))
        ours.shutdown(socket.SHUT_WR)
        _read_request(theirs)
        _send(theirs, Done())
    with Netlink() as netlink:
        netlink.find("lo")
        netlink.find("wg0")
    # In a new namespace the first interface after `lo` has the index 2.
    list(interface.configuration(LinkRef("wg0", 2), settings))


def _child(control: socket.socket, announce: int) -> None:
    _rehearse()
    request = _take(control)
    os.write(announce, TAKEN if request else ENDED)
    if not request:
        return
    control.close()
    signal.alarm(REQUEST_TIME)
    _answer(*request)


def _take(control: socket.socket) -> tuple[int, socket.socket] | None:
    """The next request: what it is about, and the conversation. None when the daemon is gone."""
    data, fds, _ = rights.receive(control, 1, max_fds=2)
    if not data:
        return None
    fd, connection = fds
    return fd, socket.socket(fileno=connection)


def _answer(fd: int, connection: socket.socket) -> None:
    """Do what is asked with `fd`, a TUN's or a namespace's; protocol.py says whose for what."""
    request = _read_request(connection)
    with contextlib.suppress(ConnectionError):  # the daemon has given up: so do we
        try:
            match request:
                case CreateInterface():
                    _create(fd, request, connection)
                case WatchInterface():
                    watch_fd, link = interface.watch(fd)
                    _pass_on(connection, link, watch_fd)
                case ChangeInterface():
                    interface.enter(fd)
                    interface.change(request)
                case ServeSockets():
                    _serve_sockets(fd, connection)
                    return
                case OpenUdpSockets():
                    _pass_on(connection, Done(), *udp.open_sockets(fd, request))
                    return
                case None:
                    return
            _send(connection, Done())
        except ConnectionError:
            raise
        except InterfaceError as error:
            _send(connection, Refusal(error.error, str(error)))
        except OSError as error:
            _send(connection, Refusal("TunFailed", interface.describe(error)))


def _read_request(connection: socket.socket) -> Request | None:
    """Return None if the daemon ended before it had sent all of it."""
    with connection.makefile("rb") as stream:
        try:
            return decode_request(stream.read())
        except ValueError:
            return None


def _create(netns: int, request: CreateInterface, connection: socket.socket) -> None:
    opened = interface.create(netns, request)
    # Once the daemon lets go of the TUN, the interface is gone.
    _pass_on(connection, opened.link, opened.tun_fd, opened.watch_fd)
    link = LinkRef(opened.link.name, opened.link.ifindex)
    interface.configure(link, request.settings)


def _serve_sockets(tun_fd: int, connection: socket.socket) -> None:
    """Answer, and then stay as the TUN's socket server, which holds nothing but its own."""
    asking, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Both before we enter: until then nobody in the namespace can reach us.
    pidfd = os.pidfd_open(os.getpid())
    _pass_on(connection, SocketServer(), asking.detach(), pidfd)
    home = interface.enter_home(tun_fd)
    _send(connection, Done())
    prctl(PR_SET_NAME, sockets.PROGRAM)
    keep_only(0, 1, 2, requests.fileno(), home)
    signal.alarm(0)
    sockets.serve(requests, home)
    os._exit(0)  # the fds of what is left to clean up are closed


def _pass_on(connection: socket.socket, message: Answer, *fds: int) -> None:
    """Send fds that are the daemon's from here on."""
    _send(connection, message, *fds)
    for fd in fds:
        os.close(fd)


def _send(connection: socket.socket, message: Answer, *fds: int) -> None:
    rights.send(connection, encode(message), fds)
