"""Namespaces made for real, with a TUN and a /proc in them, by a child process that they end with.

Sysctls, security modules, system call filters and a container's mounts all have a say in whether
the kernel allows it, so only trying tells.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from wg4netnsd.agent.obstacles import LO
from wg4netnsd.ctl.doctor.finding import Blocked
from wg4netnsd.ctl.doctor.system import read
from wg4netnsd.ctl.namespaces import map_ids
from wg4netnsd.kernel import syscalls, tun
from wg4netnsd.kernel.rtnetlink import Netlink, link_up
from wg4netnsd.kernel.syscalls import ioctl, mount, prctl, unshare

USER_NAMESPACE: Final = "a user namespace"
ID_MAP: Final = "its uid and gid"
NETWORK_NAMESPACE: Final = "a network namespace"
LOOPBACK: Final = "bringing its lo up"
IPV6: Final = "IPv6 in it"
INTERFACE: Final = "a TUN interface"
MOUNT_NAMESPACE: Final = "a mount namespace"
PID_NAMESPACE: Final = "a PID namespace"
PROC: Final = "mounting its /proc"

_TIME: Final = 10
"""Seconds for all steps. They take a thousandth of that, but the machine may be busy."""


class Outcome(NamedTuple):
    """How a step ended."""

    code: int = 0
    """0 or an errno; negative: the number of the signal that killed the child."""
    operation: str = ""
    """The system call, or a path, where known."""

    def __str__(self) -> str:
        reason = os.strerror(self.code)
        if self.code < 0:
            reason = f"killed by {signal.Signals(-self.code).name}"
        return f"{self.operation}: {reason}" if self.operation else reason


def outcome(step: str) -> Outcome:
    """How this step ended. Raises Blocked if one that it needs has failed."""
    if step not in outcomes():
        raise Blocked("user namespaces")
    return outcomes()[step]


@functools.cache
def outcomes() -> dict[str, Outcome]:
    """Take all steps that can be taken. Leaves nothing behind."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_TIME)
        _exit_after(lambda: _take_steps(writer))
    os.close(writer)
    with open(reader) as lines:
        found = {name: Outcome(*outcome) for name, *outcome in map(json.loads, lines)}
    _, status = os.waitpid(child, 0)
    if status:
        last = next(reversed(found), USER_NAMESPACE)
        found[last] = Outcome(min(os.waitstatus_to_exitcode(status), 0) or errno.EIO)
    return found


def _take_steps(writer: int) -> None:
    def tell(*outcome: str | int) -> None:
        os.write(writer, json.dumps(outcome).encode() + b"\n")

    failed: set[str] = set()
    for name, (needed, take) in _steps().items():
        if needed in failed:
            failed.add(name)
            continue
        tell(name)  # that it has begun, in case it kills us
        try:
            take()
        except OSError as error:
            failed.add(name)
            tell(name, error.errno or errno.EIO, str(error.filename or ""))


def _steps() -> dict[str, tuple[str, Callable[[], object]]]:
    """The steps, each with the one that it needs. One that fails raises OSError."""
    uid, gid = os.getuid(), os.getgid()  # both are 65534 in a user namespace without a map
    return {
        USER_NAMESPACE: ("", lambda: unshare(syscalls.CLONE_NEWUSER)),
        ID_MAP: (USER_NAMESPACE, lambda: map_ids(uid, gid)),
        NETWORK_NAMESPACE: (ID_MAP, lambda: unshare(syscalls.CLONE_NEWNET)),
        LOOPBACK: (NETWORK_NAMESPACE, _bring_loopback_up),
        IPV6: (LOOPBACK, _find_loopback_address),
        INTERFACE: (NETWORK_NAMESPACE, _make_interface),
        MOUNT_NAMESPACE: (ID_MAP, lambda: unshare(syscalls.CLONE_NEWNS)),
        PID_NAMESPACE: (MOUNT_NAMESPACE, lambda: unshare(syscalls.CLONE_NEWPID)),
        PROC: (PID_NAMESPACE, _mount_proc),
    }


def _bring_loopback_up() -> None:
    with Netlink() as netlink:
        netlink.apply([link_up(LO)])


def _find_loopback_address() -> None:
    """The kernel gives lo the address ::1 when it comes up (addrconf.c, init_loopback())."""
    if not read("/proc/self/net/if_inet6"):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


def _make_interface() -> None:
    fd = os.open(tun.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    flags = syscalls.IFF_TUN | syscalls.IFF_NO_PI | syscalls.IFF_VNET_HDR
    ioctl(fd, syscalls.TUNSETIFF, tun.ifreq("wg0", flags), "TUNSETIFF")
    tun.netns_fd(fd)


def _mount_proc() -> None:
    child = os.fork()  # only a child is in the new PID namespace
    if child == 0:
        prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        _exit_after(lambda: mount("proc", "/proc", "proc"))
    _, status = os.waitpid(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(abs(code), "", "mount /proc")


def _exit_after(function: Callable[[], object]) -> NoReturn:
    """Run `function` and end this forked process; its status is 0, or an OSError's errno."""
    status = errno.EIO
    try:
        function()
        status = 0
    except OSError as error:
        status = error.errno or status
    finally:
        os._exit(status)
