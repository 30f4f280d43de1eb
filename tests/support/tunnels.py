"""A tunnel for as long as a block of a test, and its other configurations."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.bus import Client
from support.fds import memfd
from support.namespaces import Namespace
from support.processes import wait_for


@contextmanager
def tunnel(client: Client, inside: Namespace, conf: str, **options: Any) -> Iterator[str]:
    """Its path; the options are CreateTunnel's, as Client.create() takes them."""
    path = client.create(inside, conf, **options)
    yield path
    client.close_tunnel(path)


APART = 0.025
"""Seconds: upstream takes a second initiation within 20 ms for a flood, and ignores it."""


def replace_engine(client: Client, path: str) -> None:
    """Kill a tunnel's engine, and return when the next one is up."""
    pid = client.get(path, "EnginePID")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: client.get(path, "EnginePID") not in (0, pid), "a new engine")
    client.tunnel(path, "WaitForState", "ast", ["up"], 10_000_000)


def reconfigure(client: Client, path: str, conf: str, **options: Any) -> None:
    """Reconfigure it; the options are ("signature", value) pairs."""
    with memfd(conf) as config:
        client.tunnel(path, "Reconfigure", "ha{sv}", config, options)
