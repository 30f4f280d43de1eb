"""Whatever a caller gets wrong has an error of its own, and leaves nothing behind."""

from collections.abc import Iterator

import pytest

from support.bus import Client
from support.configs import Secrets
from support.daemon import Daemon
from support.namespaces import Namespace
from support.refusals import Refuses


@pytest.fixture(scope="module")
def module_secrets(running_daemon: Daemon) -> Iterator[Secrets]:
    """All keys of this module's configurations: the daemon's log has none of them."""
    secrets = Secrets()
    yield secrets
    assert running_daemon.log
    secrets.assert_hidden_in(running_daemon.log)


@pytest.fixture
def secrets(module_secrets: Secrets) -> Secrets:
    return module_secrets


@pytest.fixture
def inside(inside: Namespace) -> Iterator[Namespace]:
    """A namespace that has nothing but lo, and nothing more after a refusal."""
    yield inside
    assert "wg0" not in inside.links()


@pytest.fixture
def refuses(daemon: Daemon, client: Client, secrets: Secrets) -> Iterator[Refuses]:
    yield Refuses(client, secrets)
    assert client.tunnels() == []
