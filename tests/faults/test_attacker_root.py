"""Root of a namespace throws at the daemon what it can, at random and all at once.

Meanwhile a checked stream goes through another tunnel: nothing of it may be lost, no state may be
wrong, and nothing may grow. WG_FUZZ_SEED chooses another attack.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import attacks
from support.bus import Client, DBusError
from support.daemon import Daemon
from support.depth import depth
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import resident, wait_for
from support.stage import Stage
from support.stream import Stream, assert_pings_arrived
from support.tunnels import reconfigure, tunnel

SECONDS = depth(8, 120)
SEED = os.environ.get("WG_FUZZ_SEED", "1")
GROWTH = 8 << 20
"""Bytes that the daemon, and an engine, may hold after the attack's second half that they did not
after its first: they come and go by half of it as garbage is collected."""


def attack(
    inside: Namespace, kind: str, *arguments: str, seconds: float = SECONDS
) -> "subprocess.Popen[str]":
    program = [sys.executable, attacks.__file__, kind, SEED, str(seconds), *arguments]
    return inside.popen(*program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("lifetime", ["namespace", "persistent"])
@pytest.mark.timeout(2 * SECONDS + 120)
def test_root_of_a_namespace(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
    lifetime: str,
) -> None:
    attacked, other = namespace(), namespace()
    log = len(daemon.log)
    with (
        tunnel(client, other, stage.conf(1), name="other", wait="handshake") as others,
        tunnel(client, attacked, stage.conf(0), lifetime=lifetime) as path,
        Stream(other, stage.far.ipv4, stage.far.echo_port, tmp_path / "journal") as stream,
    ):
        ping(attacked, stage.far.ipv4)
        stream.wait_for_progress()
        pids = {daemon.pid, client.get(path, "EnginePID"), client.get(others, "EnginePID")}
        before = client.get_all(others)
        client.subscribe(path=others)
        began = time.monotonic()
        resolv_conf = Path(client.get(path, "ResolvConf"))
        text = resolv_conf.read_text()
        attacking = [
            *(attack(attacked, kind) for kind in ("netlink", "packets", "changes")),
            attack(attacked, "resolv_conf", str(resolv_conf)),
        ]
        memory = {}
        for fraction in (0.5, 1):
            while time.monotonic() < began + SECONDS * fraction:
                client.get(others, "State")
                client.get(path, "LinkState")
                with contextlib.suppress(DBusError):  # its routes may be refused right now
                    reconfigure(client, path, stage.conf(0))
                time.sleep(0.05)
            memory[fraction] = {pid: resident(pid) for pid in pids}
        for each in attacking:
            taken, problems = each.communicate(timeout=60)
            assert each.returncode == 0, problems
            assert int(taken) > 100, each.args
        # The attacked tunnel is seen as it is; its root has put the interface back.
        wait_for(
            lambda: (client.get(path, "Interface"), client.get(path, "LinkState")) == ("wg0", "up"),
            "the last change is seen",
        )
        reconfigure(client, path, stage.conf(0))
        assert resolv_conf.read_text() == text
        ping(attacked, stage.far.ipv4)
        assert client.get(path, "State") == "up"
        ended = time.monotonic()
        assert stream.finish() > 0
        assert_pings_arrived(stream.times(), began, ended - 1)
        now = client.get_all(others)
        for changing in (before, now):
            changing.pop("Peers")
        assert now == before
        assert {daemon.pid, client.get(path, "EnginePID"), now["EnginePID"]} == pids
        grown = {pid: memory[1][pid] - memory[0.5][pid] for pid in pids}
        assert max(grown.values()) < GROWTH, grown
    told = daemon.log[log:]
    daemon.assert_no_defect(log)
    assert told.isascii() or told.replace("\n", "").isprintable()


@pytest.mark.parametrize("lifetime", ["namespace", "persistent"])
def test_tunnels_close_under_attack(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, lifetime: str
) -> None:
    """And leave nothing behind: the fixture of the daemon looks."""
    log = len(daemon.log)
    for _ in range(depth(3, 20)):
        path = client.create(inside, stage.conf(0), lifetime=lifetime)
        attacking = [attack(inside, kind, seconds=2) for kind in ("netlink", "changes")]
        time.sleep(1)  # amid it
        client.close_tunnel(path)
        for each in attacking:
            each.communicate(timeout=60)
    daemon.assert_no_defect(log)
