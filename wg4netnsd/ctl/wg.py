"""`wg4netnsctl wg N …`: the real wg(8), which looks for engines in /var/run/wireguard only."""

from __future__ import annotations

import os
from argparse import Namespace as Arguments
from typing import Final

from wg4netnsd.ctl import command, lookups, namespaces
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import of_kernel
from wg4netnsd.syscalls import MS_BIND, MS_REC, mount

RUN: Final = "/var/run"
SOCKETS: Final = "wireguard"


def run(arguments: Arguments) -> None:
    """Become wg, in namespaces where this tunnel's engine is the only one."""
    with Client() as client:
        directory = os.path.dirname(client.property(client.find(arguments.name), "ResolvConf"))
    # A network namespace too: of the host's, wg would list interfaces that are none of ours.
    namespaces.make(mounts=True)
    try:
        lookups.own_mounts()
        engine = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        sockets = os.path.join(os.path.realpath(RUN), SOCKETS)
        if not os.path.isdir(sockets):
            _make_room(os.path.dirname(sockets))
        mount(f"/proc/self/fd/{engine}", sockets, "", MS_BIND)
    except OSError as error:
        raise of_kernel(error) from None
    command.replace(["wg", *arguments.arguments])


def _make_room(directory: str) -> None:
    """Put what is in a directory of root's into one of ours, with SOCKETS beside it."""
    with os.scandir(directory) as found:
        entries = list(found)
    before = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    mount("run", directory, "tmpfs", options="mode=0755")
    os.mkdir(os.path.join(directory, SOCKETS))
    for entry in entries:
        inside = os.path.join(directory, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.name, dir_fd=before), inside)
            continue
        if entry.is_dir():
            os.mkdir(inside)
        else:
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        mount(f"/proc/self/fd/{before}/{entry.name}", inside, "", MS_BIND | MS_REC)
    os.close(before)
