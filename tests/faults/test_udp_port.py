"""A tunnel's UDP sockets are the daemon's: whatever ends, the far end sees one source port."""

import time

import pytest

from support.blocks import MARKER
from support.bus import Client
from support.capture import INITIATION, Capture
from support.daemon import Daemon
from support.namespaces import Namespace, ping
from support.stage import Control, Stage
from support.tunnels import APART, replace_engine

pytestmark = pytest.mark.long

KILLS = 50


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_an_engine_that_is_killed_50_times(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control, family: str
) -> None:
    endpoint = {"v4": stage.far.endpoint_v4, "v6": stage.far.endpoint_v6}[family]
    with Capture(control, MARKER) as capture:
        path = client.create(inside, stage.conf(0, endpoint), wait="handshake")
        port = client.get(path, "ListenPort")
        for _ in range(KILLS):
            replace_engine(client, path)
            ping(inside, stage.far.ipv4)
            time.sleep(APART)
            client.tunnel(path, "Restart")  # else the engine would be in a crash loop
            ping(inside, stage.far.ipv4)
            time.sleep(APART)
        assert client.get(path, "RestartCount") == 2 * KILLS
        client.close_tunnel(path)
        seen = capture.finish()
    ours = [each for each in seen.handshakes if each.type == INITIATION and each.from_client]
    assert len(ours) > KILLS
    assert {each.client_port for each in ours} == {port}
