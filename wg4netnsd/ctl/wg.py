"""`wg4netnsctl wg NAME …`: the real wg(8), which looks for engines only in /var/run/wireguard."""

from __future__ import annotations

import os
from argparse import Namespace as Arguments
from typing import Final

from wg4netnsd.ctl import command, mounts, namespaces
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import of_kernel
from wg4netnsd.kernel.syscalls import MS_BIND, mount

RUN: Final = "/var/run"
SOCKETS: Final = "wireguard"


def run(arguments: Arguments) -> None:
    """Become wg, in namespaces where it finds only this tunnel's engine."""
    with Client() as client:
        directory = os.path.dirname(client.tunnel(client.find_tunnel(arguments.name))["ResolvConf"])
    # A network namespace too: in the host's, wg would list interfaces that are not ours.
    namespaces.make(mounts=True)
    try:
        _put_sockets(directory, os.path.realpath(RUN))
    except OSError as error:
        raise of_kernel(error) from None
    command.replace(["wg", *arguments.arguments], "it is in the package wireguard-tools")


def _put_sockets(sockets: str, run: str) -> None:
    """Make `sockets` visible as SOCKETS in `run`, a root-owned directory, with all else in it."""
    with (
        mounts.open_fd(sockets, os.O_DIRECTORY) as engine,  # it may be in `run`
        mounts.open_fd(run, os.O_DIRECTORY) as covered,
    ):
        mounts.cover_with_tmpfs(run)
        mounts.bind_all(covered, run, without=(SOCKETS,))
        os.mkdir(f"{run}/{SOCKETS}")
        mount(f"/proc/self/fd/{engine}", f"{run}/{SOCKETS}", "", MS_BIND)
