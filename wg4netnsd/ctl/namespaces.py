"""Namespaces of our own, made or entered, by a single-threaded process that then stays in them."""

from __future__ import annotations

import contextlib
import errno
import os

from wg4netnsd.ctl.failure import DOCTOR, Failure, of_kernel
from wg4netnsd.ctl.mounts import own as own_mounts
from wg4netnsd.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    NS_GET_USERNS,
    ioctl,
    setns,
    unshare,
)


def make(*, mounts: bool = False, pids: bool = False) -> None:
    """Enter a new user namespace and a new network namespace of it, with uid and gid as they were.

    There we have every capability until the next exec, which takes them from all but root
    (capabilities(7)). `pids`: our children are in a new PID namespace, the first of them its init.
    Raises Failure.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNET
    flags |= (CLONE_NEWNS if mounts else 0) | (CLONE_NEWPID if pids else 0)
    try:
        unshare(flags)
        map_ids(uid, gid)
        _let_ping(gid)
        if mounts:
            own_mounts()
    except OSError as error:
        raise of_kernel(error, DOCTOR) from None


def map_ids(uid: int, gid: int) -> None:
    """Have them mean in a new user namespace what they mean outside, and no others. Raises OSError,
    which names the file that the kernel did not take."""
    for name, content in (
        ("setgroups", "deny"),  # before a gid_map can be written without privilege
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        path = f"/proc/self/{name}"
        try:
            with open(path, "w") as file:
                file.write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None


def _let_ping(gid: int) -> None:
    """Allow this group to open sockets for ping in the network namespace that we are in.

    A new one allows it to nobody (ping_group_range in icmp(7)). On the host systemd allows it to
    everybody, and ping needs it where it has no file capability, as on Debian 13.
    """
    path = "/proc/sys/net/ipv4/ping_group_range"
    with contextlib.suppress(OSError), open(path, "w") as file:  # read-only in some containers
        file.write(f"{gid} {gid}")


def own_netns() -> int:
    """An fd of the network namespace that we are in, the caller's."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(netns: int) -> None:
    """Enter the user namespace that owns `netns`, `netns`, and a new mount namespace there.

    We stay the user that we are; how that user is called inside is the namespace's affair. Raises
    Failure.
    """
    try:
        owner = ioctl(netns, NS_GET_USERNS, 0, "NS_GET_USERNS")
        try:
            setns(owner, CLONE_NEWUSER)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the one that we are in
                raise
        finally:
            os.close(owner)
        setns(netns, CLONE_NEWNET)
        unshare(CLONE_NEWNS)
        own_mounts()
    except OSError as error:
        if error.errno == errno.EPERM:
            text = "the namespace's owner is not a user namespace of yours"
            raise Failure(text, "it can be entered from outside of that one only") from None
        raise of_kernel(error) from None
