"""Namespaces made for real, with a TUN and a /proc in them, by a child of ours that ends with them.

Whether the kernel allows it depends on more than one can read: on sysctls, security modules,
filters of system calls, what a container covers. So each step is taken, and what came of it told.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from wg4netnsd.ctl.namespaces import map_ids
from wg4netnsd.kernel import tun
from wg4netnsd.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    IFF_NO_PI,
    IFF_TUN,
    IFF_VNET_HDR,
    PR_SET_PDEATHSIG,
    TUNSETIFF,
    ioctl,
    mount,
    prctl,
    unshare,
)

USER_NAMESPACE: Final = "a user namespace"
ID_MAP: Final = "its uid and gid"
NETWORK_NAMESPACE: Final = "a network namespace"
LOOPBACK: Final = "taking its lo up"
IPV6: Final = "IPv6 in it"
INTERFACE: Final = "a TUN interface"
MOUNT_NAMESPACE: Final = "a mount namespace"
PID_NAMESPACE: Final = "a PID namespace"
PROC: Final = "mounting its /proc"

_TIME: Final = 10.0
"""Seconds that all steps have. They need a thousandth of that, but a machine may be busy."""

_SIOCSIFFLAGS: Final = 0x8914  # linux/sockios.h
_IFF_UP: Final = 1  # linux/if.h
_IFREQ: Final = "16sH22x"


class Outcome(NamedTuple):
    """Of a step."""

    code: int = 0
    """An errno, 0 where it was taken; a signal's number and a minus where the child died of it."""
    operation: str = ""
    """Which of the step's, or a path, where that is known."""

    def __str__(self) -> str:
        if self.code < 0:
            reason = f"died of {signal.Signals(-self.code).name}"
        else:
            reason = os.strerror(self.code)
        return f"{self.operation}: {reason}" if self.operation else reason


class _Step(NamedTuple):
    take: Callable[[], object]
    """Raises OSError where the kernel refuses."""
    needs: str = ""


@functools.cache
def outcomes() -> dict[str, Outcome]:
    """What came of each step; one that needs a refused one is missing. Leaves nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _exit_after(_take_all, writer)
    os.close(writer)
    told = _read(reader, time.monotonic() + _TIME)
    os.close(reader)
    os.kill(child, signal.SIGKILL)  # it may be stuck; an ended one does not mind
    _, status = os.waitpid(child, 0)
    return _parse(told, os.waitstatus_to_exitcode(status))


def _read(fd: int, deadline: float) -> bytes:
    """All until its end, or the deadline."""
    told = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (part := os.read(fd, 4096)):
            break
        told += part
    return told


def _parse(told: bytes, status: int) -> dict[str, Outcome]:
    """Each line is a step's name, and, when it is over, its outcome."""
    found: dict[str, Outcome] = {}
    for line in told.splitlines():
        name, *outcome = json.loads(line)
        found[name] = Outcome(*outcome) if outcome else Outcome(min(status, 0) or errno.EIO)
    return found


# ---------------------------------------------------------------- the child


def _take_all(writer: int) -> None:
    refused: set[str] = set()
    for name, step in _steps().items():
        if step.needs in refused:
            refused.add(name)
            continue
        _tell(writer, name)
        try:
            step.take()
        except OSError as error:
            refused.add(name)
            _tell(writer, name, error.errno or errno.EIO, str(error.filename or ""))
        else:
            _tell(writer, name, 0, "")


def _tell(writer: int, *what: str | int) -> None:
    os.write(writer, json.dumps(what).encode() + b"\n")


def _steps() -> dict[str, _Step]:
    uid, gid = os.getuid(), os.getgid()  # in a new user namespace it is 65534 until it is mapped
    return {
        USER_NAMESPACE: _Step(lambda: unshare(CLONE_NEWUSER)),
        ID_MAP: _Step(lambda: map_ids(uid, gid), USER_NAMESPACE),
        NETWORK_NAMESPACE: _Step(lambda: unshare(CLONE_NEWNET), ID_MAP),
        LOOPBACK: _Step(_take_loopback_up, NETWORK_NAMESPACE),
        IPV6: _Step(_find_loopback_address, LOOPBACK),
        INTERFACE: _Step(_make_interface, NETWORK_NAMESPACE),
        MOUNT_NAMESPACE: _Step(lambda: unshare(CLONE_NEWNS), ID_MAP),
        PID_NAMESPACE: _Step(lambda: unshare(CLONE_NEWPID), MOUNT_NAMESPACE),
        PROC: _Step(_mount_proc, PID_NAMESPACE),
    }


def _take_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack(_IFREQ, b"lo", _IFF_UP)
        ioctl(any_socket.fileno(), _SIOCSIFFLAGS, request, "SIOCSIFFLAGS")


def _find_loopback_address() -> None:
    """The kernel gives ::1 to an lo that is taken up (addrconf.c, init_loopback())."""
    if not Path("/proc/self/net/if_inet6").read_text():
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


def _make_interface() -> None:
    fd = os.open(tun.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack(_IFREQ, b"wg0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    ioctl(fd, TUNSETIFF, request, "TUNSETIFF")
    tun.netns_fd(fd)


def _mount_proc() -> None:
    child = os.fork()  # only a child is in the new PID namespace
    if child == 0:
        _exit_after(_mount_own_proc)
    _, status = os.waitpid(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(abs(code), "", "mount /proc")


def _mount_own_proc() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    mount("proc", "/proc", "proc")


def _exit_after(function: Callable[..., None], *arguments: int) -> NoReturn:
    """Run `function` as all that is left of a forked process. Its status is an OSError's errno."""
    status = errno.EIO
    try:
        function(*arguments)
        status = 0
    except OSError as error:
        status = error.errno or status
    finally:
        os._exit(status)
