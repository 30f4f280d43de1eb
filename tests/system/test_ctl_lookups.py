"""Look-ups in `wg4netnsctl run` and `exec`: through the tunnel to a name server, or nowhere.

┌─ a namespace ─────────────┐            ┌─ another ─────────────────┐
│  getent, dig, musl, Go    │            │  DNS: 198.51.100.7 to all │
│  wg0  10.77.0.2  ─────────┼── host ────┼─ wg0  10.77.0.1           │
└───────────────────────────┘    ▲       └───────────────────────────┘
                            root looks at
                            every packet
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.capture import Capture
from support.ctl import Ctl
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.processes import wait_for
from support.resolvers import RESOLVERS, resolver
from support.stage import Control, keys

pytestmark = pytest.mark.distribution

ANSWER = "198.51.100.7"
DNS = Path(__file__).parents[1] / "support/dns.py"
MARKER = "marker-of-this-test"
NAME = f"{MARKER}.example"
SHORT = ("timeout", "1")  # musl waits 5 s for an answer


@pytest.fixture
def ctl(daemon: Daemon, client: Client, namespace: MakeNamespace, directory: Path) -> Iterator[Ctl]:
    """Configurations: `desk`, whose far end has a name server; `mute`, the same without DNS."""
    ctl = Ctl(daemon.address, directory)
    far, desk, inside = keys(), keys(), namespace()
    server = (
        f"[Interface]\nPrivateKey = {far.private}\nAddress = 10.77.0.1/24\n"
        f"[Peer]\nPublicKey = {desk.public}\nAllowedIPs = 10.77.0.2/32\n"
    )
    ctl.check("attach", "--pid", str(inside.pid), ctl.write("server", server))
    ((_, path, _),) = client.tunnels()
    port = client.get(path, "ListenPort")
    for name, dns in (("desk", "DNS = 10.77.0.1, corp.example\n"), ("mute", "")):
        ctl.write(
            name,
            f"[Interface]\nPrivateKey = {desk.private}\nAddress = 10.77.0.2/24\n{dns}"
            f"[Peer]\nPublicKey = {far.public}\nAllowedIPs = 0.0.0.0/0\n"
            f"Endpoint = 127.0.0.1:{port}\n",
        )
    serving = inside.popen(
        sys.executable, "-I", str(DNS), "10.77.0.1", ANSWER, stdout=subprocess.PIPE
    )
    with serving:
        assert serving.stdout
        assert serving.stdout.readline() == "listens\n"
        yield ctl
        serving.terminate()
    for name, _, _ in client.tunnels():
        ctl.run("down", name)
    wait_for(lambda: client.tunnels() == [], "all are down")


@pytest.mark.parametrize("program", RESOLVERS)
def test_look_ups_leave_through_the_tunnel_alone(
    ctl: Ctl, control: Control, program: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = resolver(program, tmp_path_factory.getbasetemp())
    with Capture(control, MARKER.encode()) as capture:
        assert ANSWER in ctl.check("run", "desk", "--", *command, NAME)
        seen = capture.finish()
    assert not seen.leaks
    assert (seen.found, seen.missed) == (0, 0)
    assert seen.packets["lo"] > 0  # wireguard-go's packets
    with Capture(control, MARKER.encode()) as capture:  # it notices the packets that leave
        subprocess.run([*SHORT, *command, NAME], capture_output=True)
        assert capture.finish().leaks


@pytest.mark.parametrize("program", RESOLVERS)
def test_no_dns_is_no_dns(
    ctl: Ctl, control: Control, program: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = resolver(program, tmp_path_factory.getbasetemp())
    with Capture(control, MARKER.encode()) as capture:
        done = ctl.run("run", "mute", "--", *SHORT, *command, NAME)
        seen = capture.finish()
    assert done.returncode not in (125, 126, 127), done.stderr  # the program has run
    assert ANSWER not in done.stdout
    assert not seen.leaks


def test_search_domains(ctl: Ctl) -> None:
    seen = ctl.check("run", "desk", "--", "cat", "/etc/resolv.conf")
    assert "nameserver 10.77.0.1\nsearch corp.example\n" in seen
    assert ANSWER in ctl.check("run", "desk", "--", "getent", "hosts", "intranet")


def test_the_directory_one_is_in(ctl: Ctl) -> None:
    """The tunnel's files show even at paths that start in the current directory /etc."""
    for path in ("/etc", "/etc/apt"):
        relative = os.path.relpath("/etc/resolv.conf", path)
        assert "10.77.0.1" in ctl.check("run", "desk", "--", "cat", relative, cwd=path)


def test_exec_follows_a_reload(ctl: Ctl) -> None:
    ctl.check("up", "desk")
    script = "getent hosts one.example && echo && read _ && getent hosts two.example || echo none"
    with ctl.popen(
        "exec", "desk", "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdin
        assert running.stdout
        assert ANSWER in running.stdout.readline()
        ctl.check("reload", "desk", "mute")
        said, _ = running.communicate("\n")
        assert said.splitlines()[-1] == "none"
