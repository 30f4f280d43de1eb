"""The tunnel that gets other configurations."""

import pytest

from support.bus import Client
from support.daemon import Daemon
from support.namespaces import Namespace
from support.witnesses import Make, Tunnel


@pytest.fixture
def tunnel(daemon: Daemon, client: Client, inside: Namespace) -> Make:
    """Makes the one tunnel of `inside`; `daemon` closes it."""
    return lambda conf, **options: Tunnel(daemon, client, inside, conf, **options)
