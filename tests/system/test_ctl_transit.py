"""`wg4netnsctl` with a transit: two hops, other namespaces, and the caller's sockets."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.ctl import PROGRAM, Ctl, ctl_with_office
from support.daemon import Daemon
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import wait_for
from support.stage import Control, Stage
from support.transits import conf_through, sockets_of

PING = ("ping", "-c1", "-W5")


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        ctl.write("exit", conf_through(stage, 1))
        ctl.write("inmost", conf_through(stage, 2))
        yield ctl
        ctl.down_all(client)


def test_two_hops_and_three(ctl: Ctl, client: Client, stage: Stage) -> None:
    ctl.check("up", "office")
    ctl.check("up", "--via", "office", "--handshake", "exit")
    ctl.check("exec", "exit", *PING, stage.far.ipv4)
    ctl.check("run", "--via=exit", "inmost", "--", *PING, stage.far.ipv4)
    assert "  transit: tunnel office\n" in ctl.check("show", "exit")
    assert "transit" not in ctl.check("show", "office")
    (shown,) = json.loads(ctl.check("show", "--json", "exit"))
    assert shown["transit"] == ["tunnel", "office"]
    monitor = ctl.popen("monitor", "exit")
    with monitor:
        assert monitor.stdout
        lines = [monitor.stdout.readline() for _ in range(2)]
        assert lines[1].endswith("  exit  up, via tunnel office\n")
        ctl.check("down", "office")
        ends = "its outer tunnel 'office' ended: closed by request"
        assert any(ends in line for line in iter(monitor.stdout.readline, "")), "it is told"
        monitor.terminate()
    wait_for(lambda: not client.tunnels(), "both have ended")


def test_a_namespace(ctl: Ctl, client: Client, stage: Stage, inside: Namespace) -> None:
    ctl.check("attach", "--pid", str(inside.pid), "office")
    for name, option in (("a", f"pid={inside.pid}"), ("b", f"netns={inside.path}")):
        path = json.loads(ctl.check("up", "--json", f"--transit-{option}", "--name", name, "exit"))[
            "path"
        ]
        assert client.get(path, "Transit") == ("namespace", f"net:[{inside.id[1]}]")
        ctl.check("exec", name, *PING, stage.far.ipv4)
        ctl.check("down", name)


def test_the_seeds_scene(
    ctl: Ctl, client: Client, stage: Stage, inside: Namespace, namespace: MakeNamespace
) -> None:
    """Two UDP sockets of the host, at 100 and 101, and an interface in a namespace without network:
    its ciphertext goes by those two."""
    ctl.write("office", stage.conf(3))
    with sockets_of(None) as (ipv4, ipv6):
        script = (
            f"exec 100<&{ipv4} 101<&{ipv6}\n"
            f'exec "$@" attach --pid {inside.pid} --transit-fd 100 --transit-fd 101 office'
        )
        subprocess.run(
            ["bash", "-c", script, "bash", PROGRAM],
            env=ctl.environment, pass_fds=(ipv4, ipv6), check=True, timeout=30,
        )  # fmt: skip
    ((_, path, _),) = client.tunnels()
    assert client.get(path, "Transit") == ("sockets", "")
    ping(inside, stage.far.ipv4)
    ping(inside, stage.far.ipv6)


def test_an_uplink_that_only_root_has(
    ctl: Ctl, client: Client, stage: Stage, control: Control, inside: Namespace
) -> None:
    """The physical namespace: root's helper hands sockets of it over. The host has no route."""
    far = "192.0.6.2"
    assert subprocess.run(["ip", "route", "get", far], capture_output=True).returncode
    ctl.write("office", stage.conf(3, f"{far}:51820"))
    fds = control.roots_sockets()
    options = [word for fd in fds for word in ("--transit-fd", str(fd))]
    done = subprocess.run(
        [PROGRAM, "attach", "--handshake", "--pid", str(inside.pid), *options, "office"],
        env=ctl.environment, pass_fds=fds, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    for fd in fds:
        os.close(fd)
    assert (done.returncode, done.stderr) == (0, "")
    ((_, path, _),) = client.tunnels()
    assert client.get(path, "Transit") == ("sockets", "")  # whose is not for us to know
    ping(inside, stage.far.ipv4)
    pid = client.get(path, "EnginePID")
    os.kill(pid, signal.SIGKILL)
    ping(inside, stage.far.ipv4)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--via", "nowhere"], "option 'transit_tunnel': no tunnel named 'nowhere'"),
        (["--transit-pid", "1"], "/proc/1/ns/net: Permission denied"),
        (["--transit-fd", "77"], "'77': no such descriptor is open"),
        (["--transit-fd", "0"], "option 'transit_sockets': not a socket: expected UDP sockets"),
        (["--via", "a", "--transit-pid", "1"], "not allowed with argument --via"),
    ],
)
def test_what_is_refused(ctl: Ctl, client: Client, words: list[str], why: str) -> None:
    done = ctl.run("up", *words, "office")
    assert done.returncode != 0
    assert why in done.stderr
    assert client.tunnels() == []


def test_a_command_gets_none_of_them(ctl: Ctl, stage: Stage) -> None:
    ctl.write("office", stage.conf(3))
    with sockets_of(None) as (ipv4, ipv6):
        sockets = {os.readlink(f"/proc/self/fd/{fd}") for fd in (ipv4, ipv6)}
        done = subprocess.run(
            [
                *(PROGRAM, "run", "--transit-fd", str(ipv4), "--transit-fd", str(ipv6), "office"),
                *("--", "sh", "-c", "ls -l /proc/self/fd"),
            ],
            env=ctl.environment, pass_fds=(ipv4, ipv6), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 -> " in done.stdout
    assert not sockets & set(done.stdout.split())
