"""Thousands of messages that no honest client would send: support/fuzz_bus.py makes them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import (
    Bus,
    Client,
    DBusError,
)
from support.buses import BROKER, DAEMON
from support.configs import Secrets
from support.daemon import Daemon
from support.depth import depth
from support.fuzz_bus import BATCH, SEED, WORDS, Descriptors, Fuzzer, descriptors
from support.namespaces import MakeNamespace
from support.processes import resident, wait_for
from support.stage import Stage

MESSAGES = 10_000
MEGABYTES_MORE = 24  # what the daemon may hold after them, its fragmented heap


@pytest.fixture
def fds(namespace: MakeNamespace, stage: Stage, tmp_path: Path) -> Iterator[Descriptors]:
    with descriptors(namespace, stage, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("bus_program", "messages"),
    [(DAEMON, MESSAGES), (BROKER, depth(3_000, MESSAGES))],
    indirect=["bus_program"],
)
@pytest.mark.timeout(400)
def test_thousands_of_messages(
    messages: int,
    daemon: Daemon,
    client: Client,
    bus: Bus,
    namespace: MakeNamespace,
    fds: Descriptors,
    tmp_path: Path,
) -> None:
    secrets, home = Secrets(), namespace()
    (tmp_path / "wg.conf").write_text(secrets.conf())
    taken = home.open()
    fds.namespaces.append(taken)
    fuzzer = Fuzzer(bus, fds, [*WORDS, home.path, str(tmp_path / "wg.conf")])
    memory = 0
    for sent in range(0, messages, BATCH):
        if sent % (BATCH * 5) == 0:
            fuzzer.reconnect()  # which ends what waits without an end

            def renewed() -> bool:
                """What nobody waits for may still be creating one there."""
                daemon.close_tunnels()
                with contextlib.suppress(DBusError):
                    client.create(home, secrets.conf(), name="fuzzed")
                return "fuzzed" in [name for name, *_ in client.tunnels()]

            wait_for(renewed, "the tunnel is there again")
        if sent == 1000:
            memory = resident(daemon.pid)
        fuzzer.send_batch()
        assert daemon.process.poll() is None, f"seed {SEED}: it ended:\n{daemon.log[-5000:]}"
    fuzzer.close()
    os.close(taken)

    assert "Traceback" not in daemon.log
    assert "internal error" not in daemon.log
    secrets.assert_hidden_in(daemon.log)
    assert resident(daemon.pid) - memory < MEGABYTES_MORE << 20
    # It was no test if all had been refused at the door.
    assert set(fuzzer.answers) >= {
        "method_return", "InvalidArgs", "InvalidNetns", "InvalidConfig", "AlreadyExists", "Timeout",
        "LimitExceeded", "NoSuchTunnel", "UnknownObject", "UnknownMethod", "UnknownInterface",
        "UnknownProperty", "PropertyReadOnly",
    }, fuzzer.answers  # fmt: skip
    assert fuzzer.disconnected > messages / 1000
    own = messages / BATCH / 5
    assert daemon.log.count("→ up: created") > 1.2 * own
    daemon.assert_idle()
    client.close_tunnel(client.create(home, secrets.conf()))
