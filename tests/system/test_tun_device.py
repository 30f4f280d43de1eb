"""Where /dev/net/tun is missing or root's alone, creating fails and says what to do."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import NAME, Client, DBusError
from support.daemon import PROGRAM
from support.namespaces import MakeNamespace
from support.processes import children, is_alive, wait_for
from support.stage import Stage


@pytest.fixture(params=["no_tun_runtime", "closed_tun_runtime"])
def client_there(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Client]:
    """A client of a bus that lives where the device cannot be opened. What the bus activates
    lives there too, by its real activation file."""
    runtime = Path(getattr(stage, request.param))
    services = runtime / "dbus-1/services"
    services.mkdir(parents=True, exist_ok=True)
    activation = services / f"{NAME}.service"
    activation.write_text(f"[D-BUS Service]\nName={NAME}\nExec={PROGRAM}\n")
    with Client(f"unix:path={runtime}/bus") as client:
        client.bus("ReloadConfig")
        client.bus("StartServiceByName", "su", NAME, 0)
        pid = client.bus("GetConnectionUnixProcessID", "s", NAME)
        yield client
        assert is_alive(pid)
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "wg4netnsd ends")
    activation.unlink()
    assert not (runtime / "wg4netnsd").exists()


def test_creating_fails_and_leaves_nothing(
    client_there: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    pid = client_there.bus("GetConnectionUnixProcessID", "s", NAME)
    client_there.tunnels()
    before = children(pid)
    # The agent, the parent of file processes, and an engine that waits for a tunnel.
    assert len(before) == 3
    inside = namespace()
    with pytest.raises(DBusError) as failed:
        client_there.create(inside, stage.conf(0))
    assert failed.value.name == "org.wg4netns1.Error.TunFailed"
    assert failed.value.message.startswith("TunFailed: ")
    assert "/dev/net/tun" in failed.value.message
    assert client_there.tunnels() == []
    assert set(inside.links()) == {"lo"}
    wait_for(lambda: len(children(pid) - before) == 1, "another engine waits")
    assert len(children(pid) & before) == 2  # the first one has ended
