"""`exec --trust-root`: a command in a namespace that belongs to someone else, such as a container.

Root there has every capability over the command: it can trace it, and join its mount namespace
(setns(2)) with the user's own uid outside. So the command gets new PID and IPC namespaces, and a
root directory with the system's programs and nothing of the user's. Mounts that only cover
something would not help, because root may remove them: this is a new root, and the old one is
unmounted.

    /              a tmpfs that ends with the command
    ├── usr, etc … the system's; not if they belong to the user
    ├── dev        the devices that every program expects
    ├── proc, sys  of the command's own namespaces
    └── tmp, run   empty

What the command was given stays within root's reach: its environment, standard streams, and the
terminal that it is on.
"""

from __future__ import annotations

import contextlib
import os
import textwrap  # noqa: F401  complain() needs it when Python's own files may be out of sight
from argparse import Namespace as Arguments
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from wg4netnsd.ctl import command, mounts, namespaces
from wg4netnsd.ctl.run import prepare
from wg4netnsd.ctl.sshconfig import RootFile
from wg4netnsd.kernel.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWPID,
    MNT_DETACH,
    MS_BIND,
    MS_NOEXEC,
    MS_NOSUID,
    PR_SET_DUMPABLE,
    mount,
    pivot_root,
    prctl,
    umount,
)
from wg4netnsd.tunnel.resolvconf import render

_SYSTEM: Final = (
    *("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt"),
    *("nix", "gnu"),  # NixOS, Guix
)
_DEVICES: Final = ("full", "null", "random", "tty", "urandom", "zero")
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_PLACE: Final = "/run"
"""Where the new root is built; every system has this directory, and we need nothing in it."""


def run(arguments: Arguments, netns: int, tunnel: dict[str, Any], files: list[RootFile]) -> int:
    """Run a command there; return its exit status."""
    # Until we have left the user's files: root there may not trace a process that is not dumpable,
    # because this program was started outside (__ptrace_may_access() in kernel/ptrace.c).
    prctl(PR_SET_DUMPABLE, 0)
    namespaces.enter(netns, CLONE_NEWPID | CLONE_NEWIPC)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # A text, not the daemon's file, which root could write to.
    dns = [_parse_dns(entry) for entry in tunnel["Dns"]]
    prepare(arguments, tunnel, render(tunnel["Name"], dns).encode(), files)
    os.chdir("/")  # init and we must not keep the old root by a directory in it
    return command.run(arguments.command, new_pids=True, enter_root=_enter_root)


def _parse_dns(entry: str) -> IPv4Address | IPv6Address | str:
    try:
        return ip_address(entry)
    except ValueError:  # a search domain
        return entry


def _enter_root() -> None:
    """Make this the root and current directory of every process in this mount namespace.

    Call it in a new PID namespace, before `/proc` is mounted anew: the kernel mounts one only
    beside another that shows everything (mount_too_revealing() in fs/namespace.c). Raises OSError.
    """
    with mounts.open_fd("/", os.O_DIRECTORY) as root:
        mounts.cover_with_tmpfs(_PLACE)
        mounts.bind_all(root, _PLACE, without=[n for n in os.listdir(root) if not _is_system(n)])
    _make_dev(f"{_PLACE}/dev")
    for name in ("proc", "sys", "run", "var"):
        os.mkdir(f"{_PLACE}/{name}")
    for name in ("tmp", "var/tmp", "dev/shm"):
        os.mkdir(f"{_PLACE}/{name}")
        os.chmod(f"{_PLACE}/{name}", 0o1777)
    mount("proc", f"{_PLACE}/proc", "proc", mounts.FLAGS | MS_NOEXEC)
    with contextlib.suppress(OSError):  # refused in some containers
        mount("sysfs", f"{_PLACE}/sys", "sysfs", mounts.FLAGS | MS_NOEXEC)
    os.chdir(_PLACE)
    pivot_root(".", ".")  # now the old root is mounted over the new one (pivot_root(2))
    umount(".", MNT_DETACH)
    os.chdir("/")


def _is_system(name: str) -> bool:
    """Is it a directory, or a link to one, that does not belong to the user?"""
    # lookups.py has covered /etc with a tmpfs, which does.
    return name in _SYSTEM and (name == "etc" or os.stat(f"/{name}").st_uid != os.geteuid())


def _make_dev(directory: str) -> None:
    os.mkdir(directory)
    for name in _DEVICES:
        with contextlib.suppress(FileNotFoundError):
            os.mknod(f"{directory}/{name}")
            mount(f"/dev/{name}", f"{directory}/{name}", "", MS_BIND)
    os.mkdir(f"{directory}/pts")
    with contextlib.suppress(OSError):  # no new terminals then
        options = "newinstance,ptmxmode=0666,mode=0620"
        mount("devpts", f"{directory}/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    for name, target in _LINKS.items():
        os.symlink(target, f"{directory}/{name}")
