"""`up --foreground`: a tunnel as a service. It ends with us, and we end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from argparse import Namespace as Arguments
from typing import Final

from wg4netnsd import names, systemd
from wg4netnsd.ctl import create, namespaces
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import Failure

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Told(Exception):
    """By a signal, to end."""


def run(arguments: Arguments) -> int:
    """0 when the tunnel was closed, by a signal to us or by somebody else; Failure if it failed."""
    with create.opened(arguments.conf) as conf, Client() as client:
        lease = os.pidfd_open(os.getpid())
        name = create.suggested_name(conf.name)
        asked = create.options(arguments, name, lifetime=("s", "lease"), lease=("h", lease))
        namespaces.make()
        netns = namespaces.own_netns()
        path = create.finish(create.begin(client, netns, conf, asked), asked)
        os.close(netns)
        os.close(lease)
        name = client.properties(path)["Name"]
        try:
            for number in _ENDING:
                signal.signal(number, _tell)
            client.listen(
                f"type='signal',sender='{names.BUS_NAME}',path='{path}'",
                "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',"
                f"arg0='{names.BUS_NAME}'",
            )
            created = client.properties(path)["CreatedUSec"]
            systemd.notify_ready()
            _until_it_ends(client, path, name, created)
        except _Told:
            systemd.notify_stopping("told to end")
        finally:
            _close(path)
    return 0


def _tell(*_: object) -> None:
    raise _Told


def _until_it_ends(client: Client, path: str, name: str, created: int) -> None:
    while True:
        where, member, body = client.next_signal()
        match member, body:
            case "StateChanged", ("failed", _, reason, *_) if where == path:
                raise Failure(f"{name} has failed: {reason}")
            case "StateChanged", ("closed", _, reason, *_) if where == path:
                print(f"{name} was closed: {reason}", file=sys.stderr)
                return
            case "NameOwnerChanged", (names.BUS_NAME, _, new, *_) if new:
                # A daemon that takes over has all tunnels before it has its name.
                tunnel = client.tunnels().get(path)
                if not tunnel or tunnel["CreatedUSec"] != created:
                    raise Failure(f"{name} was lost with its daemon")


def _close(path: str) -> None:
    """Only then is its name free for the next one."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    # On a connection of its own: a signal may have cut the other one short anywhere.
    with contextlib.suppress(Failure), Client() as client:
        client.call(path, names.TUNNEL, "Close", start=False)
