"""Making and entering namespaces, by a single-threaded process that stays in them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from wg4netnsd.ctl.failure import DOCTOR, Failure, of_kernel
from wg4netnsd.ctl.mounts import isolate as isolate_mounts
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
    """Enter a new user namespace and a new network namespace that it owns, with the same uid and
    gid.

    We have every capability there until the next exec, which keeps them only for root
    (capabilities(7)). `pids`: our children are in a new PID namespace; the first one is its init.
    Raises Failure.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNET
    flags |= (CLONE_NEWNS if mounts else 0) | (CLONE_NEWPID if pids else 0)
    try:
        unshare(flags)
        map_ids(uid, gid)
        _set_up_network(gid)
        if mounts:
            isolate_mounts()
    except OSError as error:
        raise of_kernel(error, DOCTOR) from None


def map_ids(uid: int, gid: int) -> None:
    """Map only this uid and gid, to themselves, in a new user namespace. Raises OSError that names
    the file which the kernel refused."""
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


def _set_up_network(gid: int) -> None:
    """Lift limits that only a new network namespace has; it has nothing to protect from its user.

    Nobody may open a ping socket, where systemd allows everybody on the host (ping_group_range in
    icmp(7)): ping needs it where it has no file capability, as on Debian 13. And only root may bind
    ports below 1024, but nobody is root in there (ip_unprivileged_port_start in ip(7)).

    Where large packets vanish on the way and no ICMP says so, TCP then tries smaller ones
    (tcp_mtu_probing in tcp(7)).
    """
    for name, value in (
        ("ping_group_range", f"{gid} {gid}"),
        ("ip_unprivileged_port_start", "0"),
        ("tcp_mtu_probing", "1"),
    ):
        path = f"/proc/sys/net/ipv4/{name}"
        with contextlib.suppress(OSError), open(path, "w") as file:  # read-only in some containers
            file.write(value)


def current_netns() -> int:
    """A new fd of the current network namespace, which the caller owns."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def identify(netns: int) -> tuple[int, int]:
    """Its device and inode numbers, as in the property NetnsId."""
    status = os.fstat(netns)
    return status.st_dev, status.st_ino


def is_owner_ours(netns: int) -> bool:
    """Are we in the user namespace that owns `netns`, and so within reach of its root already?

    Raises Failure if that user namespace is not below ours.
    """
    with _owner(netns) as owner:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))


@contextlib.contextmanager
def _owner(netns: int) -> Iterator[int]:
    """Open the user namespace that owns `netns`. Raises Failure, also for errors in the block."""
    owner = -1
    try:
        owner = ioctl(netns, NS_GET_USERNS, 0, "NS_GET_USERNS")
        yield owner
    except OSError as error:
        if error.errno == errno.EPERM:
            text = "the namespace's owner is not a user namespace of yours"
            raise Failure(text, "it can be entered only from outside that user namespace") from None
        raise of_kernel(error) from None
    finally:
        if owner >= 0:
            os.close(owner)


def enter(netns: int, more: int = 0) -> None:
    """Enter the user namespace that owns `netns`, then `netns`, then a new mount namespace.

    `more`: flags of further new namespaces. We stay the same user; the namespace's map decides on
    our uid inside. Raises Failure.
    """
    with _owner(netns) as owner:
        try:
            setns(owner, CLONE_NEWUSER)
        except OSError as error:
            if error.errno != errno.EINVAL:  # we are in it already
                raise
        setns(netns, CLONE_NEWNET)
        unshare(CLONE_NEWNS | more)
        isolate_mounts()
