"""From the bus call to a configured interface and engine, with warm caches.

    warm   the daemon is idle
    cold   no daemon runs; the bus starts it for this call

In the same rounds: the predecessor's program (predecessor.py); and slirp4netns from its start to
its ready-fd, by when the namespace has TAP, address and route, without encryption. Both are started
for each tunnel, so they are neither warm nor cold.
"""

import argparse
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench import predecessor
from bench.record import Table
from bench.turns import in_turns
from support.bus import NAME, Bus, Client
from support.daemon import PROGRAM, Daemon
from support.namespaces import Namespace
from support.processes import wait_for
from support.stage import keys

CONF = f"""[Interface]
PrivateKey = {keys().private}
Address = 10.9.0.1/24, fd09::1/64
[Peer]
PublicKey = {keys().public}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 127.0.0.1:51820
"""

WARM = ("wg4netnsd, persistent", "wg4netnsd, namespace")
COLD = ("wg4netnsd, cold",)
PEERS = ("predecessor's way", "slirp4netns")


def run(arguments: argparse.Namespace) -> list[Table]:
    with (
        tempfile.TemporaryDirectory(prefix="wg-") as directory,
        tempfile.TemporaryDirectory(prefix="wg-") as activating,
        tempfile.TemporaryDirectory(prefix="wg-") as building,
    ):
        engine = predecessor.build(Path(building))
        bus, other_bus = Bus(Path(directory)), Bus(Path(activating), silent=True)
        service = f"[D-BUS Service]\nName={NAME}\nExec={PROGRAM}\n"
        (other_bus.directory / f"dbus-1/services/{NAME}.service").write_text(service)
        daemon = Daemon(bus, Path(directory))
        with Client(bus.address) as client, Client(other_bus.address) as other:
            ways = {
                "wg4netnsd, persistent": lambda: _warm(daemon, client, "persistent"),
                "wg4netnsd, namespace": lambda: _warm(daemon, client, "namespace"),
                "wg4netnsd, cold": lambda: _cold(other),
                "predecessor's way": lambda: predecessor.create(engine, CONF),
                "slirp4netns": _slirp4netns,
            }
            times = in_turns(ways, arguments.rounds)
        daemon.stop()
        other_bus.close()
        bus.close()
    title = "From the call to a configured interface"
    return [
        Table(
            f"{title}, {which}",
            "ms",
            {name: times[name] for name in (*ours, *PEERS)},
            "slirp4netns",
        )
        for which, ours in (("warm", WARM), ("cold", COLD))
    ]


def _warm(daemon: Daemon, client: Client, lifetime: str) -> float:
    wait_for(lambda: daemon.footprint() == daemon.idle, "the daemon is idle")
    return _create(client, lifetime)


def _cold(client: Client) -> float:
    took = _create(client, "persistent")
    pid = client.bus("GetConnectionUnixProcessID", "s", NAME)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the daemon has ended")
    return took


def _create(client: Client, lifetime: str) -> float:
    with Namespace() as namespace:
        netns, config = namespace.open(), os.memfd_create("config")
        os.write(config, CONF.encode())
        options = {"lifetime": ("s", lifetime)}
        start = time.perf_counter()
        path = client.manager("CreateTunnel", "hha{sv}", netns, config, options)
        took = time.perf_counter() - start
        os.close(netns)
        os.close(config)
        assert {"wg0", "lo"} == set(namespace.links())
        client.close_tunnel(path)
    return took * 1e3


def _slirp4netns() -> float:
    with Namespace() as namespace:
        read_end, write_end = os.pipe()
        command = ["slirp4netns", "--configure", f"--ready-fd={write_end}", str(namespace.pid)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "tap0"],
            pass_fds=[write_end],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(write_end)
        assert os.read(read_end, 1) == b"1", "slirp4netns is not ready"
        took = time.perf_counter() - start
        os.close(read_end)
        process.terminate()
        process.wait()
    return took * 1e3
