"""Rootless containers, by the real podman."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import MANAGER, NAME, ROOT, Client, busctl
from support.containers import Container
from support.daemon import SOON, Daemon
from support.processes import wait_for
from support.stage import Stage

pytestmark = pytest.mark.distribution


@pytest.fixture
def container() -> Iterator[Container]:
    with Container() as started:
        yield started


def test_a_container_reaches_the_far_end(
    daemon: Daemon, client: Client, container: Container, stage: Stage
) -> None:
    path = client.create(container, stage.conf(0))
    assert f" {stage.clients[0].ipv4}/24 " in container.check("ip", "address", "show", "dev", "wg0")
    container.check("ping", "-c1", "-W10", stage.far.ipv4)
    container.check("ping", "-6", "-c1", "-W10", stage.far.ipv6)

    client.close_tunnel(path)
    assert "wg0" not in container.check("ip", "link")


def test_a_script_names_the_container_by_path(
    daemon: Daemon, container: Container, stage: Stage, tmp_path: Path
) -> None:
    """As on Debian 12, whose busctl cannot pass a descriptor."""
    conf = tmp_path / "wg.conf"
    conf.touch(mode=0o600)
    conf.write_text(stage.conf(0, stage.far.endpoint_v6))
    options = ["1", "name", "s", "container"]
    called = busctl(
        daemon.address,
        *("call", NAME, ROOT, MANAGER, "CreateTunnelFromPaths", "ssa{sv}"),
        *(container.path, str(conf), *options),
    )
    assert called["data"] == ["/org/wg4netns1/tunnel/container"]
    container.check("ping", "-c1", "-W10", stage.far.ipv4)


def test_two_containers_do_not_disturb_each_other(
    daemon: Daemon, client: Client, stage: Stage
) -> None:
    with Container() as first, Container() as second:
        paths = [client.create(first, stage.conf(0)), client.create(second, stage.conf(1))]
        for container in (first, second):
            container.check("ping", "-c1", "-W10", stage.far.ipv4)
        for path in paths:
            client.close_tunnel(path)


def test_a_tunnel_ends_with_its_container(daemon: Daemon, client: Client, stage: Stage) -> None:
    with Container() as container:
        client.create(container, stage.conf(0))
        container.check("ping", "-c1", "-W10", stage.far.ipv4)
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended", SOON)


def test_a_tunnel_closes_after_its_container_is_gone(
    daemon: Daemon, client: Client, stage: Stage
) -> None:
    with Container() as container:
        path = client.create(container, stage.conf(0), lifetime="persistent")
        container.check("ping", "-c1", "-W10", stage.far.ipv4)
    wait_for(lambda: not Path(container.path).exists(), "the container has ended")
    client.close_tunnel(path)
    assert client.tunnels() == []
