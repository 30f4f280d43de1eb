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
        _put_sockets(directory, os.path.realpath(RUN))
    except OSError as error:
        raise of_kernel(error) from None
    command.replace(["wg", *arguments.arguments])


def _put_sockets(sockets: str, run: str) -> None:
    """Have `run`, which is root's, show `sockets` as SOCKETS beside all else that is in it."""
    with os.scandir(run) as found:
        entries = [entry for entry in found if entry.name != SOCKETS]
    before = os.open(run, os.O_PATH | os.O_DIRECTORY)
    engine = os.open(sockets, os.O_PATH | os.O_DIRECTORY)  # it may be in there
    mount("run", run, "tmpfs", options="mode=0755")
    for entry in entries:
        inside = os.path.join(run, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.name, dir_fd=before), inside)
            continue
        if entry.is_dir():
            os.mkdir(inside)
        else:
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        mount(f"/proc/self/fd/{before}/{entry.name}", inside, "", MS_BIND | MS_REC)
    os.mkdir(os.path.join(run, SOCKETS))
    mount(f"/proc/self/fd/{engine}", os.path.join(run, SOCKETS), "", MS_BIND)
    os.close(before)
    os.close(engine)
