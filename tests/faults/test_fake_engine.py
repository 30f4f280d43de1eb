"""An engine that misbehaves as the real one can't be made to: tests/faults/engines/fake.py."""

import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.usage import cpu_seconds
from support.bus import DBusError
from support.configs import Secrets
from support.daemon import Daemon
from support.namespaces import MakeNamespace

FAKE = Path(__file__).parent / "engines/fake.py"


@pytest.fixture
def fake(start_daemon: Callable[..., Daemon], tmp_path: Path, mode: str) -> Daemon:
    """A daemon whose engines are all like that."""
    program = tmp_path / "fake-engine"
    source = FAKE.read_text().replace('MODE = ""', f"MODE = {mode!r}")
    program.write_text(f"#!{sys.executable} -I\n{source}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return start_daemon("--engine", str(program))


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("ends-at-once", "EngineFailed", "a bad day"),
        ("silence", "Timeout", "not up within 1 s"),
        ("half-an-answer", "Timeout", "not up within 1 s"),
        ("endless-answer", "EngineFailed", "still runs, but its connection is broken"),
        ("breaks-off", "EngineFailed", "still runs, but its connection is broken"),
        ("rubbish", "EngineFailed", "no errno"),
        ("empty", "EngineFailed", "no errno"),
        ("errno-is-no-number", "EngineFailed", "no errno"),
        ("errno-is-unknown", "EngineFailed", "refused"),
        ("errno-is-huge", "EngineFailed", "refused"),
        ("refuses", "EngineFailed", "refused"),
        ("port-out-of-range", "EngineFailed", "status is malformed"),
        ("port-is-negative", "EngineFailed", "status is malformed"),
        ("key-is-none", "EngineFailed", "status is malformed"),
        ("counter-is-huge", "EngineFailed", "status is malformed"),
        ("control-characters", "EngineFailed", "status is malformed"),
        ("does-not-take-its-tun", "Timeout", "not up within 1 s"),
        ("ends-with-its-tun", "EngineFailed", "ended with status 0"),
    ],
)
def test_no_tunnel_comes_of_it(
    fake: Daemon, namespace: MakeNamespace, error: str, message: str
) -> None:
    inside = namespace()
    wait = 1_000_000 if error == "Timeout" else 20_000_000
    with pytest.raises(DBusError, match=message) as refused:
        fake.client.create(inside, Secrets().conf(), timeout_usec=("t", wait))
    assert refused.value.short_name == error
    assert "Zm9yIGFsbCB0aG9zZSB3aG8" not in refused.value.message + fake.log
    assert "Traceback" not in fake.log
    assert fake.client.tunnels() == []
    assert set(inside.links()) == {"lo"}
    assert [each.name for each in fake.directory.iterdir()] == []


@pytest.mark.parametrize(
    "mode", ["rubbish-events", "flood-of-events", "flood-of-rubbish-events", "flood-of-words"]
)
def test_what_it_tells_holds_up_nobody(fake: Daemon, namespace: MakeNamespace) -> None:
    """The daemon answers, and its log stays one that can be read."""
    path = fake.client.create(namespace(), Secrets().conf())
    begin = time.monotonic()
    while time.monotonic() < begin + 2:  # for as long as it may take to fill a log
        used = cpu_seconds(fake.pid)
        assert fake.client.get(path, "State") == "up"
        assert cpu_seconds(fake.pid) - used < 0.5  # whatever else the machine does
    assert "Traceback" not in fake.log
    assert len(fake.log) < 200_000
    fake.client.close_tunnel(path)
