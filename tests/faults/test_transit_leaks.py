"""Of a tunnel within a tunnel, nothing is ever seen on the host's links, ciphertext included, but
inside of the outer one's ciphertext.

Its endpoint is an inner address of the far end. So a datagram of its own on any link of the host
would be to or from an inner address, and a handshake message would have its port.
"""

import time
from pathlib import Path

import pytest

from support.blocks import MARKER
from support.bus import Client
from support.capture import Capture
from support.installed import crash
from support.manager import UserManager
from support.namespaces import MakeNamespace, ping
from support.processes import wait_for
from support.stage import Control, Stage
from support.stream import Stream
from support.transits import conf_through
from support.tunnels import APART, reconfigure, replace_engine

pytestmark = pytest.mark.long

KILLS = 20


def test_nothing_of_an_inner_tunnel_is_seen(
    unlimited: UserManager,
    namespace: MakeNamespace,
    stage: Stage,
    control: Control,
    tmp_path: Path,
) -> None:
    within, inside = namespace(), namespace()
    conf = conf_through(stage, 1)
    with Capture(control, MARKER) as capture, Client(unlimited.address) as client:
        capture.try_out()
        outer = client.create(within, stage.conf(0), name="outer")
        inner = client.create(inside, conf, transit_tunnel="outer", name="inner", wait="handshake")
        ports = {client.get(path, "ListenPort") for path in (outer, inner)}
        assert len(ports) == 2
        port = client.get(outer, "ListenPort")
        stream = Stream(inside, stage.far.ipv4, stage.far.echo_port, tmp_path / "journal")
        with stream:
            stream.wait_for_progress()
            for path in (inner, outer) * KILLS:
                replace_engine(client, path)
                ping(inside, stage.far.ipv4)
                time.sleep(APART)
                client.tunnel(path, "Restart")  # else the engine would be in a crash loop
                ping(inside, stage.far.ipv4)
                time.sleep(APART)
            for _ in range(KILLS):
                crash(unlimited)
            for number in range(KILLS):
                mtu = "[Interface]\nMTU = 1280\n" if number % 2 else "[Interface]\n"
                reconfigure(client, inner, conf.replace("[Interface]\n", mtu))
            stream.wait_for_progress()
            stream.finish()
        # Engines try to send all the time while there is no way.
        for up in ("down", "up"):
            within.check("ip", "link", "set", "wg0", up)
            inside.run("ping", "-n", "-c3", "-W1", stage.far.ipv4)
            client.tunnel(inner, "Restart")
        ping_through = inside.popen("ping", "-n", "-i0.01", stage.far.ipv4, stdout=-3)
        client.close_tunnel(outer)
        wait_for(lambda: client.tunnels() == [], "both have ended")
        ping_through.terminate()
        ping_through.wait(10)
        seen = capture.finish()
    assert seen.tried("inner address") and seen.tried("marker")
    assert seen.missed == 0
    assert not seen.leaks
    assert {each.client_port for each in seen.handshakes if each.from_client} == {port}
