"""Programs behind a tunnel: `run`, `exec` and `shell`."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace as Arguments
from collections.abc import Iterator
from typing import Any

from wg4netnsd.ctl import create, mounts, namespaces, sshconfig
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import DOCTOR, NOT_STARTED, Failure, of_kernel
from wg4netnsd.ctl.sshconfig import RootFile

TUNNEL_VARIABLE = "WG4NETNS"
"""In the command's environment: the tunnel's name, as for a shell's prompt."""


def run(arguments: Arguments) -> int:
    """A command in new namespaces, with a tunnel that ends with us; its exit status."""
    with _not_started_yet():
        files = sshconfig.root_files()
        path, client = _up(arguments)
        with client:
            create.warn(_go_on_in_it(client, path, files))
        from wg4netnsd.ctl import command

        return command.run(arguments.command, new_pids=not arguments.share_pids)


def _up(arguments: Arguments) -> tuple[str, Client]:
    """Enter new namespaces with a tunnel: its path, on the connection that was made outside."""
    with create.opened(arguments.conf) as conf:
        client = Client()
        # Its end is the tunnel's, however it comes about.
        lease = os.pidfd_open(os.getpid())
        namespaces.make(mounts=True, pids=not arguments.share_pids)
        netns = namespaces.own_netns()
        # There may be several; and a pid is the only one of its kind in its namespace alone.
        name = create.suggested_name(conf.name, f"-{os.fstat(netns).st_ino}")
        asked = create.options(arguments, name, lifetime=("s", "lease"), lease=("h", lease))
        reply = create.begin(client, netns, conf, asked)
        os.close(netns)
        os.close(lease)
        # Meanwhile, as Python's start is most of what all this takes.
        from wg4netnsd.ctl import command, lookups  # noqa: F401

        return create.finish(reply, asked), client


def execute(arguments: Arguments) -> None:
    """Become a command in a tunnel's namespace."""
    with _not_started_yet():
        files = sshconfig.root_files()
        with Client() as client:
            path = client.find(arguments.name)
            netns = client.open_netns(path)
            namespaces.enter(netns)
            os.close(netns)
            _go_on_in_it(client, path, files)
        from wg4netnsd.ctl import command

        command.replace(arguments.command)


def shell(arguments: Arguments) -> None:
    """Become the user's shell there."""
    arguments.command = [os.environ.get("SHELL") or "/bin/sh"]
    execute(arguments)


@contextlib.contextmanager
def _not_started_yet() -> Iterator[None]:
    """What fails in here has a status of its own, which is none of the command's."""
    try:
        yield
    except OSError as error:
        raise of_kernel(error, DOCTOR, NOT_STARTED) from None
    except Failure as failure:
        failure.status = NOT_STARTED
        raise


def _go_on_in_it(client: Client, path: str, files: list[RootFile]) -> dict[str, Any]:
    """What the command is to find, but for the namespaces. Returns the tunnel's properties."""
    from wg4netnsd.ctl import lookups

    tunnel = client.properties(path)
    lookups.confine(tunnel["ResolvConf"], files)
    mounts.look_anew()
    os.environ[TUNNEL_VARIABLE] = tunnel["Name"]
    return tunnel
