"""Tunnels without a program: `up`, `attach`, `down`, `reload`, `restart`."""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace as Arguments
from typing import Any

from wg4netnsd import names
from wg4netnsd.ctl import create, namespaces, progress
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import Failure, complain

REPLY_TIME = 60.0
"""Seconds. The daemon answers sooner: it gives up on host names and on engines after 20."""


def up(arguments: Arguments) -> int:
    """Bring up a tunnel in a namespace that only the tunnel keeps alive."""
    if arguments.foreground:
        from wg4netnsd.ctl import foreground

        return foreground.run(arguments)
    with create.open_conf(arguments.conf) as conf, Client() as client:
        more = create.transit(arguments, client)
        namespaces.make()
        # The user namespace has no process: whoever enters it later comes from us.
        more |= {"lifetime": ("s", "persistent"), "trust_root": ("b", True)}
        asked = create.options(arguments, create.suggested_name(conf.name), **more)
        _create(client, arguments, namespaces.current_netns(), conf, asked)
    return 0


def attach(arguments: Arguments) -> None:
    """Bring up a tunnel in a namespace that another process made."""
    path = f"/proc/{arguments.pid}/ns/net" if arguments.netns is None else arguments.netns
    netns = create.open_netns(path)
    with create.open_conf(arguments.conf) as conf, Client() as client:
        more = {"lifetime": ("s", arguments.lifetime)} | create.transit(arguments, client)
        asked = create.options(arguments, create.suggested_name(conf.name), **more)
        _create(client, arguments, netns, conf, asked)


def _create(
    client: Client, arguments: Arguments, netns: int, conf: create.Conf, asked: dict[str, Any]
) -> None:
    path = create.finish(create.begin(client, netns, conf, asked), asked)
    tunnel = client.tunnel(path)
    create.warn_of_error(tunnel)
    if getattr(arguments, "forwards", None):
        create.add_forwards(client, path, arguments)
    if arguments.json:
        created = {"name": tunnel["Name"], "path": path, "resolv_conf": tunnel["ResolvConf"]}
        print(json.dumps(created))
    else:
        print(tunnel["Name"])


def down(arguments: Arguments) -> int:
    """Close those that exist; return the status of the first failure."""
    status = 0
    with Client() as client:
        for name in arguments.names:
            try:
                client.call(client.find_tunnel(name), names.TUNNEL, "Close", start=False)
            except Failure as failure:
                complain(str(failure), failure.hint)
                status = status or failure.status
    return status


def reload(arguments: Arguments) -> None:
    """Apply another configuration, or read the same one again."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client())
        path = client.find_tunnel(arguments.name)
        conf = stack.enter_context(create.open_conf(arguments.conf or arguments.name))
        asked = create.changes(arguments) | create.transit(arguments)
        body = ("ha{sv}", conf.fd, asked)
        _wait(client, path, "Reconfigure", *body, what="resolving host names")


def restart(arguments: Arguments) -> None:
    """Replace a tunnel's engine."""
    with Client() as client:
        _wait(client, client.find_tunnel(arguments.name), "Restart", what="waiting for the engine")


def _wait(client: Client, path: str, method: str, *body: Any, what: str) -> None:
    reply = client.begin(path, names.TUNNEL, method, *body, start=False)
    with progress.show(what) as callback:
        reply.wait(callback, REPLY_TIME)
