"""A tunnel whose properties and methods are looked at."""

from collections.abc import Iterator

import pytest

from support.bus import Client
from support.configs import Secrets
from support.daemon import Daemon
from support.namespaces import Namespace


@pytest.fixture
def conf() -> str:
    interface = "Address = 10.9.0.2/24, fd00::2/64\nDNS = 10.9.0.1, lan\nMTU = 1400"
    return Secrets().conf(interface, "AllowedIPs = 10.9.0.0/24")


@pytest.fixture
def tunnel(daemon: Daemon, client: Client, inside: Namespace, conf: str) -> Iterator[str]:
    path = client.create(inside, conf, name="one")
    yield path
    daemon.close_tunnels()
