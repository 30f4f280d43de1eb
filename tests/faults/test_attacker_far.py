"""Datagrams at an engine's UDP port, from anybody and from whoever is on the path.

Meanwhile a checked stream goes through its tunnel, and another one, of the same daemon, makes
handshakes: nothing may be lost, no state may be wrong, and nothing may grow.
"""

import os
import socket
import time
from pathlib import Path

import pytest

from support import datagrams
from support.bus import Client
from support.daemon import Daemon
from support.depth import depth
from support.namespaces import MakeNamespace
from support.processes import resident
from support.stage import Stage
from support.stream import Stream, assert_pings_arrived
from support.tunnels import tunnel

SECONDS = depth(8, 120)
SEED = int(os.environ.get("WG_FUZZ_SEED", "1"))
GROWTH = 16 << 20
"""Bytes that an engine may hold after the attack's second half that it did not after its first."""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def on_the_path(stage: Stage) -> datagrams.Path:
    host, _, port = stage.far.endpoint_v4.rpartition(":")
    return datagrams.Path((host, int(port)), stage.clients[0].public_key, SEED)


@pytest.mark.timeout(2 * SECONDS + 120)
def test_datagrams(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
) -> None:
    one, two, port = namespace(), namespace(), free_port()
    log = len(daemon.log)
    with on_the_path(stage) as way:
        endpoint = f"{way.address[0]}:{way.address[1]}"
        conf = stage.conf(0, endpoint=endpoint)
        with (
            tunnel(client, one, conf, wait="handshake") as path,
            Stream(one, stage.far.ipv4, stage.far.echo_port, tmp_path / "journal") as stream,
        ):
            stream.wait_for_progress()
            before = client.get_all(path)
            pids = {daemon.pid, before["EnginePID"]}
            targets = {
                before["ListenPort"]: stage.clients[0].public_key,
                port: stage.clients[1].public_key,
            }
            began = time.monotonic()
            memory, handshakes = {}, 0
            with datagrams.Anybody(targets, SEED) as anybody:
                way.attack()
                for fraction in (0.5, 1):
                    while time.monotonic() < began + SECONDS * fraction:
                        other = stage.conf(1, ListenPort=str(port))
                        with tunnel(client, two, other, wait="handshake"):
                            handshakes += 1
                    memory[fraction] = {pid: resident(pid) for pid in pids}
            ended = time.monotonic()
            assert stream.finish() > 0
            assert_pings_arrived(stream.times(), began, ended - 1)
            now = client.get_all(path)
            for changing in (before, now):
                changing.pop("Peers")
            assert now == before
            ((_, peer),) = client.peers(path).items()
            assert peer["endpoint"] == endpoint
            grown = {pid: memory[1][pid] - memory[0.5][pid] for pid in pids}
            assert max(grown.values()) < GROWTH, grown
    assert anybody.sent > 100 * SECONDS
    assert way.sent > 50 * SECONDS
    assert handshakes > SECONDS / 2
    daemon.assert_no_defect(log)
