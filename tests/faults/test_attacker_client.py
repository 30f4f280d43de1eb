"""A client of the bus sends what no honest one would, while a checked stream goes through a tunnel
of somebody else's: nothing of it may be lost, no state may be wrong, and nothing may grow.

test_fuzz_bus.py looks at the answers; here it goes on for a while, on dbus-broker too, which
forwards more than dbus-daemon.
"""

import time
from pathlib import Path

import pytest

from support.bus import Bus, Client
from support.buses import ON_BOTH
from support.configs import Secrets
from support.daemon import Daemon
from support.depth import depth
from support.fuzz_bus import SEED, WORDS, Fuzzer, descriptors
from support.namespaces import MakeNamespace
from support.processes import resident
from support.stage import Stage
from support.stream import Stream, assert_pings_arrived
from support.tunnels import tunnel

SECONDS = depth(8, 120)
GROWTH = 24 << 20
"""Bytes that the daemon may hold more after it: its heap is fragmented by large messages."""


@ON_BOTH
@pytest.mark.timeout(2 * SECONDS + 120)
def test_client_of_the_bus(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
) -> None:
    other, home = namespace(), namespace()
    (tmp_path / "wg.conf").write_text(Secrets().conf())
    with (
        tunnel(client, other, stage.conf(1), name="other", wait="handshake") as others,
        Stream(other, stage.far.ipv4, stage.far.echo_port, tmp_path / "journal") as stream,
        descriptors(namespace, stage, tmp_path) as fds,
    ):
        stream.wait_for_progress()
        before = client.get_all(others)
        memory = resident(daemon.pid)
        began = time.monotonic()
        words = [word for word in WORDS if word not in ("other", others)]
        fuzzer = Fuzzer(bus, fds, [*words, home.path, str(tmp_path / "wg.conf")])
        while time.monotonic() < began + SECONDS:
            for _ in range(5):
                fuzzer.send_batch()
            fuzzer.reconnect()  # which ends what waits without an end
            assert client.get(others, "State") == "up"
            for _, path, _ in client.tunnels():
                if path != others:
                    client.tunnel(path, "WaitForState", "ast", ["up", "failed"], 30_000_000)
        fuzzer.close()
        ended = time.monotonic()
        assert stream.finish() > 0, f"seed {SEED}"
        assert_pings_arrived(stream.times(), began, ended - 1)
        now = client.get_all(others)
        for changing in (before, now):
            changing.pop("Peers")
        assert now == before
        daemon.close_tunnels(others)
        assert resident(daemon.pid) - memory < GROWTH
    daemon.assert_no_defect()
