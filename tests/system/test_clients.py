"""The same daemon through clients that have nothing in common: busctl, gdbus, jeepney."""

import os
from pathlib import Path

import pytest

from support.bus import (
    MANAGER,
    NAME,
    ROOT,
    TUNNEL,
    Client,
    CommandFailed,
    DBusError,
    busctl,
    gdbus_call,
)
from support.buses import ON_BOTH
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.stage import Stage

pytestmark = ON_BOTH


def test_they_are_told_the_same(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    path = client.create(namespace(), stage.conf(0), name="one")
    assert path == "/org/wg4netns1/tunnel/one"
    assert client.tunnels() == [("one", path, "up")]
    listed = busctl(daemon.address, "call", NAME, ROOT, MANAGER, "ListTunnels")
    assert listed == {"type": "a(sos)", "data": [[["one", path, "up"]]]}
    listed = gdbus_call(daemon.address, ROOT, f"{MANAGER}.ListTunnels")
    assert listed == f"([('one', objectpath '{path}', 'up')],)\n"


def test_gdbus_passes_descriptors(
    daemon: Daemon, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    inside = namespace()
    conf = tmp_path / "wg.conf"
    conf.touch(mode=0o600)
    conf.write_text(stage.conf(0))
    netns, config = inside.open(), os.open(conf, os.O_RDONLY)
    try:
        created = gdbus_call(
            daemon.address,
            ROOT,
            f"{MANAGER}.CreateTunnel",
            *(str(netns), str(config), "{'name': <'by-gdbus'>}"),
            fds=[netns, config],
        )
    finally:
        os.close(netns)
        os.close(config)
    (path,) = created.split("'")[1::2]
    assert "wg0" in inside.links()
    gdbus_call(daemon.address, path, f"{TUNNEL}.Close")
    assert "wg0" not in inside.links()


def test_errors_have_a_name_and_a_message_that_begins_with_it(
    daemon: Daemon, client: Client
) -> None:
    with pytest.raises(DBusError) as refused:
        client.manager("GetTunnel", "s", "nobody")
    assert refused.value.name == "org.wg4netns1.Error.NoSuchTunnel"
    assert refused.value.message.startswith("NoSuchTunnel: ")
    with pytest.raises(CommandFailed, match="NoSuchTunnel: "):
        busctl(daemon.address, "call", NAME, ROOT, MANAGER, "GetTunnel", "s", "nobody")
    with pytest.raises(CommandFailed, match=r"org\.wg4netns1\.Error\.NoSuchTunnel"):
        gdbus_call(daemon.address, ROOT, f"{MANAGER}.GetTunnel", "nobody")
