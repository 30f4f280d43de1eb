"""docs/applets.md: its examples against a real daemon, as Debian's Python and GJS run them."""

import json
import os
import re
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from support.bus import NAME, ROOT, Bus, Client
from support.daemon import Daemon
from support.namespaces import MakeNamespace, ping
from support.processes import wait_for
from support.stage import Stage

pytestmark = pytest.mark.distribution

DOCS = Path(__file__).parents[2] / "docs"
PYTHON = "/usr/bin/python3"  # Debian's, as python3-gi belongs to that
EXAMPLES = {
    "Python": [PYTHON, str(DOCS / "examples/applet.py")],
    "JavaScript": ["gjs", "-m", str(DOCS / "examples/applet.js")],
}


class Applet:
    """One of the examples, or another program, whose output goes into a file."""

    def __init__(self, address: str, directory: Path, command: list[str]) -> None:
        self.expected: list[str] = []
        self.output, self.errors = directory / "output", directory / "errors"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": address},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    @property
    def lines(self) -> list[str]:
        """Those that are complete."""
        assert self.process.poll() is None, self.errors.read_text()
        *complete, _ = self.output.read_text().split("\n")
        return complete

    def wait_for(self, *lines: str) -> None:
        """Until it has printed these next."""
        self.expected += lines
        wait_for(lambda: len(self.lines) >= len(self.expected), f"it prints {lines}")
        assert self.lines[: len(self.expected)] == self.expected

    def end(self, number: int) -> None:
        """By a signal, having printed what was waited for and nothing else."""
        self.process.send_signal(number)
        catches = self.process.args[0] == PYTHON
        assert self.process.wait(10) == (0 if catches else -number)
        assert self.output.read_text().splitlines() == self.expected
        assert self.errors.read_text() == ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> list[str]:
    return EXAMPLES[request.param]


def peer(stage: Stage, state: str) -> str:
    return f"office: peer {stage.far.public_key[:4]}… {state}"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_tunnel_s_life(
    example: list[str],
    ending: int,
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
) -> None:
    inside = namespace()
    with Applet(daemon.address, tmp_path, example) as applet:
        applet.wait_for("wg4netnsd: running")
        path = client.create(inside, stage.conf(0), name="office")
        applet.wait_for("office: starting", peer(stage, "idle"), "office: up")
        ping(inside, stage.far.ipv4)
        applet.wait_for(peer(stage, "handshaking"), peer(stage, "active"))
        client.close_tunnel(path)
        applet.wait_for("office: stopping", peer(stage, "stale"), "office: closed", "office: gone")
        applet.end(ending)


def test_the_daemon_comes_and_goes_and_is_never_started(
    example: list[str], namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        bus = Bus(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-"))))
        stack.callback(bus.close)
        activated = tmp_path / "activated"
        service = f"[D-BUS Service]\nName={NAME}\nExec=/usr/bin/touch {activated}\n"
        (bus.directory / f"dbus-1/services/{NAME}.service").write_text(service)
        client = stack.enter_context(Client(bus.address))
        client.bus("ReloadConfig")
        applet = stack.enter_context(Applet(bus.address, tmp_path, example))
        applet.wait_for("wg4netnsd: not running")

        daemon = Daemon(bus, tmp_path)
        stack.callback(daemon.stop_if_running)
        client.create(namespace(), stage.conf(0), name="office", wait="handshake")
        applet.wait_for("office: starting", peer(stage, "idle"))
        applet.wait_for(peer(stage, "handshaking"), peer(stage, "active"), "office: up")
        (tmp_path / "late").mkdir()
        late = stack.enter_context(Applet(bus.address, tmp_path / "late", example))
        late.wait_for("wg4netnsd: running", "office: up", peer(stage, "active"))
        daemon.kill()
        for each in (applet, late):
            each.wait_for("office: gone")
            each.end(signal.SIGTERM)
        assert not activated.exists()


# ---------------------------------------------------------------- the page's calls

# Makes one call, and prints which of both it was told by, and what.
_ONE_CALL = """
import json, sys
loop = GLib.MainLoop()

def tell(outcome):
    return lambda *values: (print(json.dumps([outcome, *values])), loop.quit())

function, *arguments = sys.argv[1:]
bus = Gio.bus_get_sync(Gio.BusType.SESSION)
globals()[function](bus, *arguments, tell("done"), tell("failed"))
loop.run()
"""


class Calls:
    def __init__(self, address: str) -> None:
        self.address = address
        page = (DOCS / "applets.md").read_text()
        shown = page.partition("## Calls")[2]
        (block,) = re.findall("```python\n(.*?)```", shown, re.DOTALL)
        self.program = block + _ONE_CALL

    def __call__(self, *arguments: str) -> list[Any]:
        printed = subprocess.run(
            [PYTHON, "-c", self.program, *arguments],
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        told: list[Any] = json.loads(printed)
        return told


def test_calls(daemon: Daemon, namespace: MakeNamespace, stage: Stage, tmp_path: Path) -> None:
    call, inside = Calls(daemon.address), namespace()
    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    for conf, text in ((good, stage.conf(0)), (bad, stage.conf(0, MTU="many"))):
        conf.touch(mode=0o600)
        conf.write_text(text)
    outcome, name, text = call("create", inside.path, str(bad), "office")
    assert (outcome, name) == ("failed", "InvalidConfig")
    assert re.match(r"InvalidConfig: line \d+: MTU: ", text)

    outcome, path = call("create", inside.path, str(good), "office")
    assert (outcome, path) == ("done", f"{ROOT}/tunnel/office")
    assert call("tunnel", path, "Restart") == ["done"]
    outcome, peers = call("tunnel", path, "GetPeers")
    assert (outcome, peers.keys()) == ("done", {stage.far.public_key})
    assert peers[stage.far.public_key]["rx_bytes"] == 0
    assert call("tunnel", path, "Close") == ["done"]
    outcome, name, text = call("tunnel", path, "Close")
    assert (outcome, name) == ("failed", "UnknownObject")
    assert text.startswith("UnknownObject: ")


def test_calls_without_a_daemon() -> None:
    with ExitStack() as stack:
        bus = Bus(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-"))))
        stack.callback(bus.close)
        call = Calls(bus.address)
        outcome, name, _ = call("tunnel", f"{ROOT}/tunnel/office", "Close")
        assert (outcome, name) == ("failed", "NameHasNoOwner")
        outcome, name, _ = call("create", "/nowhere", "/nothing", "office")
        assert (outcome, name) == ("failed", "ServiceUnknown")
