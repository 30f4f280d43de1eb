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
from wg4netnsd.kernel.syscalls import (
    CAP_NET_ADMIN,
    CAP_NET_RAW,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_RAISE,
    add_inheritable,
    prctl,
)

TUNNEL_VARIABLE = "WG4NETNS"
"""The command's environment variable with the tunnel's name, for a shell's prompt for example."""


FORCE_BUS_VARIABLE = "SYSTEMCTL_FORCE_BUS"
"""Has systemctl use the session bus, not the user manager's own socket, which it refuses where it
can't see the manager's PID (getpeercred() in systemd's src/basic/socket-util.c)."""


def run(arguments: Arguments) -> int:
    """Run a command in new namespaces, with a tunnel that ends with it; return its exit status."""
    with _before_command():
        files = sshconfig.root_files()
        path, client = _up(arguments)
        with client:
            tunnel = client.tunnel(path)
        create.warn_of_error(tunnel)
        prepare(arguments, tunnel, tunnel["ResolvConf"], files)
        if not arguments.share_pids:
            os.environ.setdefault(FORCE_BUS_VARIABLE, "1")
        from wg4netnsd.ctl import command

        return command.run(arguments.command, new_pids=not arguments.share_pids)


def _up(arguments: Arguments) -> tuple[str, Client]:
    """Enter new namespaces and bring up a tunnel there. Returns its path, and a connection made
    outside."""
    with create.open_conf(arguments.conf) as conf:
        client = Client()
        # When this process ends, for whatever reason, the tunnel does too.
        lease = os.pidfd_open(os.getpid())
        transit = create.transit(arguments, client)
        namespaces.make(mounts=True, pids=not arguments.share_pids)
        netns = namespaces.current_netns()
        # The inode makes the name unique; a PID would be unique only in its PID namespace.
        name = create.suggested_name(conf.name, f"-{os.fstat(netns).st_ino}")
        more = {"lifetime": ("s", "lease"), "lease": ("h", lease), "trust_root": ("b", True)}
        asked = create.options(arguments, name, **more, **transit)
        reply = create.begin(client, netns, conf, asked)
        os.close(netns)
        os.close(lease)
        # During the wait, as imports are most of what all this takes.
        from wg4netnsd.ctl import command, lookups  # noqa: F401

        return create.finish(reply, asked), client


def execute(arguments: Arguments) -> int:
    """Run a command in a tunnel's namespace: become it, unless the namespace is someone else's."""
    with _before_command():
        files = sshconfig.root_files()
        with Client() as client:
            path = client.find_tunnel(arguments.name)
            netns = client.open_netns(path)
            tunnel = client.tunnel(path)
        if tuple(tunnel["NetnsId"]) != namespaces.identify(netns):
            raise Failure(f"'{arguments.name}' was replaced by another tunnel meanwhile")
        if not tunnel["RootTrusted"] and not namespaces.is_owner_ours(netns):
            if not arguments.trust_root:
                raise _untrusted(arguments.name)
            from wg4netnsd.ctl import guest

            return guest.run(arguments, netns, tunnel, files)

        namespaces.enter(netns)
        os.close(netns)
        prepare(arguments, tunnel, tunnel["ResolvConf"], files)
    from wg4netnsd.ctl import command

    return command.replace(arguments.command)


def _untrusted(name: str) -> Failure:
    text = f"wg4netnsctl did not make the namespace of '{name}': its root could take over a command"
    hint = (
        "'podman exec' and the like run a command of the container's own; --trust-root runs one of "
        "the host's there if you trust the namespace's root, see wg4netnsctl(1)"
    )
    return Failure(text, hint)


def shell(arguments: Arguments) -> int:
    """Run the user's shell in a tunnel's namespace."""
    arguments.command = [os.environ.get("SHELL") or "/bin/sh"]
    return execute(arguments)


@contextlib.contextmanager
def _before_command() -> Iterator[None]:
    """Give failures in the block a status that differs from those of the command."""
    try:
        yield
    except OSError as error:
        raise of_kernel(error, DOCTOR, NOT_STARTED) from None
    except Failure as failure:
        failure.status = NOT_STARTED
        raise


def prepare(
    arguments: Arguments, tunnel: dict[str, Any], resolv_conf: str | bytes, files: list[RootFile]
) -> None:
    """Set up look-ups, /sys, directory, environment and capabilities; lookups.confine() has
    `resolv_conf`."""
    from wg4netnsd.ctl import lookups

    lookups.confine(resolv_conf, files)
    mounts.renew_sysfs()
    mounts.reenter_directory()
    os.environ[TUNNEL_VARIABLE] = tunnel["Name"]
    for name in arguments.cap or ():
        _keep(name)


def _keep(name: str) -> None:
    """Keep a capability over the next exec and those after it, though the command is not root's."""
    number = {"net_admin": CAP_NET_ADMIN, "net_raw": CAP_NET_RAW}[name]
    add_inheritable(number)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
