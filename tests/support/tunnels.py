"""A tunnel for as long as a block of a test, and its other configurations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.bus import Client
from support.fds import memfd
from support.namespaces import Namespace


@contextmanager
def tunnel(client: Client, inside: Namespace, conf: str, **options: Any) -> Iterator[str]:
    """Its path; the options are CreateTunnel's, as Client.create() takes them."""
    path = client.create(inside, conf, **options)
    yield path
    client.close_tunnel(path)


def reconfigure(client: Client, path: str, conf: str, **options: Any) -> None:
    """Reconfigure it; the options are ("signature", value) pairs."""
    with memfd(conf) as config:
        client.tunnel(path, "Reconfigure", "ha{sv}", config, options)
