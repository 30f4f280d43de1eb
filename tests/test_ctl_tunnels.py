"""`up` and what one does with a tunnel that is up: `exec`, `show`, `reload`, `wg`, `down`, …"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.ctl import Ctl
from support.daemon import Daemon
from support.namespaces import Namespace, ping
from support.processes import wait_for
from support.stage import Stage

PING = ("ping", "-c1", "-W5")


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    ctl = Ctl(daemon.address, directory)
    ctl.write("office", stage.conf(0, DNS="198.51.100.1, example.com"))
    yield ctl
    for name, _, _ in client.tunnels():
        ctl.run("down", name)  # or it ends by itself just now, with its namespace
    wait_for(lambda: client.tunnels() == [], "all are down")


@pytest.fixture
def office(ctl: Ctl) -> str:
    """A tunnel that is up."""
    return ctl.check("up", "office").strip()


# ---------------------------------------------------------------- up, exec, down


def test_up_exec_down(ctl: Ctl, client: Client, stage: Stage) -> None:
    assert ctl.check("up", "office") == "office\n"
    ((name, path, state),) = client.tunnels()
    assert (name, state, client.get(path, "Lifetime")) == ("office", "up", "persistent")
    ctl.check("exec", "office", *PING, stage.far.ipv4)
    ctl.check("exec", "office", "--", *PING, stage.far.ipv6)
    assert ctl.run("exec", "office", "--", "sh", "-c", "exit 9").returncode == 9
    assert ctl.check("exec", "office", "id", "-u") == f"{os.getuid()}\n"
    assert ctl.check("exec", "office", "--", "sh", "-c", "echo $WG4NETNS") == "office\n"
    assert ctl.check("down", "office") == ""
    assert client.tunnels() == []


def test_exec_is_the_command_itself(ctl: Ctl, office: str) -> None:
    """So that a service manager's main process is it, and its signals reach it."""
    running = ctl.popen("exec", office, "--", "sh", "-c", "echo $$; exec sleep 1000")
    assert running.stdout
    assert running.stdout.readline() == f"{running.pid}\n"
    running.terminate()
    assert running.wait(10) == -15
    running.stdout.close()


def test_up_under_other_names(ctl: Ctl, client: Client) -> None:
    described = json.loads(
        ctl.check("up", "--json", "--name", "desk", "--interface=vpn0", "office")
    )
    assert described["name"] == "desk"
    assert client.get(described["path"], "Interface") == "vpn0"
    assert described["resolv_conf"] == client.get(described["path"], "ResolvConf")
    again = ctl.run("up", "--name", "desk", "office")
    assert again.returncode == 4
    assert "'desk'" in again.stderr
    assert "wg4netnsctl down" in again.stderr


def test_down_of_several(ctl: Ctl, client: Client, office: str) -> None:
    done = ctl.run("down", "nobody", office)
    assert done.returncode == 3
    assert "'nobody'" in done.stderr
    assert client.tunnels() == []


def test_attach(
    ctl: Ctl, namespace: Callable[..., Namespace], client: Client, stage: Stage
) -> None:
    inside = namespace()
    assert ctl.check("attach", "--pid", str(inside.pid), "office") == "office\n"
    ping(inside, stage.far.ipv4)
    ctl.check("exec", "office", "--", *PING, stage.far.ipv4)  # its owner's map: root there
    assert ctl.check("exec", "office", "id", "-u") == "0\n"
    other = namespace()
    ctl.check("attach", "--netns", other.path, "--name", "other", "--lifetime=persistent", "office")
    assert [state for _, _, state in client.tunnels()] == ["up", "up"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["exec", "nobody", "--", "true"], 125, ["'nobody'", "wg4netnsctl list"]),
        (["down", "nobody"], 3, ["'nobody'"]),
        (["show", "nobody"], 3, ["'nobody'"]),
        (["reload", "nobody", "office"], 3, ["'nobody'"]),
        (["restart", "nobody"], 3, ["'nobody'"]),
        (["wg", "nobody", "show"], 3, ["'nobody'"]),
        (["up", "nobody"], 1, ["nobody.conf", "No such file"]),
        (["attach", "--pid", "1", "office"], 1, ["/proc/1/ns/net"]),
        (["attach", "--pid", "x", "office"], 2, ["expected a process's number"]),
        (["attach", "office"], 2, ["--pid", "--netns"]),
        (["attach", "--netns", "/proc/self/ns/net", "office"], 1, ["the daemon's own"]),
    ],
)
def test_refusals(ctl: Ctl, arguments: list[str], status: int, words: list[str]) -> None:
    done = ctl.run(*arguments)
    assert done.returncode == status, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.startswith(("wg4netnsctl: ", "usage: "))


# ---------------------------------------------------------------- list and show


def test_list(ctl: Ctl, office: str) -> None:
    headings, line = ctl.check("list").splitlines()
    assert headings.split()[:3] == ["NAME", "STATE", "PEERS"]
    assert line.split()[:3] == ["office", "up", "0/1"]
    assert max(map(len, (headings, line))) <= 80
    assert ctl.check("list", "--quiet") == "office\n"
    (listed,) = json.loads(ctl.check("list", "--json"))
    assert (listed["name"], listed["state"], listed["interface"]) == ("office", "up", "wg0")
    assert set(listed["peers"].values()) <= {"idle", "handshaking"}


def test_nothing_to_list(ctl: Ctl) -> None:
    assert [ctl.check("list", *option) for option in ([], ["-q"])] == ["", ""]
    assert json.loads(ctl.check("list", "--json")) == []
    assert ctl.check("show") == ""
    assert json.loads(ctl.check("show", "--json")) == []


def test_show(ctl: Ctl, office: str, client: Client, stage: Stage) -> None:
    ctl.check("exec", office, *PING, stage.far.ipv4)
    shown = ctl.check("show")
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    patterns = [
        "tunnel: office",
        "  state: up",
        f"  public key: {re.escape(stage.clients[0].public_key)}",
        r"  listening port: \d+",
        rf"  addresses: {stage.clients[0].ipv4}/24, {stage.clients[0].ipv6}/64",
        "  dns: 198.51.100.1, example.com",
        "",
        f"peer: {re.escape(stage.far.public_key)}",
        "  state: active",
        f"  endpoint: {re.escape(stage.far.endpoint_v4)}",
        "  allowed ips: 0.0.0.0/0, ::/0",
        r"  latest handshake: (now|\d seconds? ago)",
        r"  transfer: \S+ (B|KiB) received, \S+ (B|KiB) sent",
    ]
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in shown.splitlines()), (
            f"{pattern}:\n{shown}"
        )
    assert ctl.check("show", "office").split("latest")[0] == shown.split("latest")[0]
    (described,) = json.loads(ctl.check("show", "--json", "office"))
    peer = described["Peers"][stage.far.public_key]
    assert (described["Name"], peer["state"]) == ("office", "active")
    assert peer["rx_bytes"] > 0
    for text in (shown, json.dumps(described)):
        assert stage.clients[0].private_key not in text
        assert stage.clients[0].preshared_key not in text


def test_colours_are_a_terminals(ctl: Ctl, office: str) -> None:
    with ctl.terminal("show") as terminal:
        assert terminal.wait_status() == 0
        assert "\x1b[32mup\x1b[m" in terminal.screen
    ctl.environment["NO_COLOR"] = "1"
    with ctl.terminal("show") as terminal:
        assert terminal.wait_status() == 0
        assert "\x1b" not in terminal.screen


# ---------------------------------------------------------------- changes


def test_reload(ctl: Ctl, office: str, client: Client, stage: Stage) -> None:
    ((_, path, _),) = client.tunnels()
    engine = client.get(path, "EnginePID")
    ctl.write("office", stage.conf(0, MTU="1300"))
    ctl.check("reload", office)  # the file of that name, read anew
    assert client.get(path, "Mtu") == 1300
    ctl.write("other", stage.conf(0, MTU="1310", PostUp="true"))
    refused = ctl.run("reload", office, "other")
    assert refused.returncode == 5
    assert "other.conf: line" in refused.stderr
    assert "'--ignore KEY' is that option" in refused.stderr
    ctl.check("reload", "--ignore=PostUp", office, "other")
    assert client.get(path, "Mtu") == 1310
    assert client.get(path, "EnginePID") == engine


def test_restart(ctl: Ctl, office: str, client: Client, stage: Stage) -> None:
    ((_, path, _),) = client.tunnels()
    engine = client.get(path, "EnginePID")
    ctl.check("restart", office)
    assert client.get(path, "EnginePID") != engine
    ctl.check("exec", office, *PING, stage.far.ipv4)


# ---------------------------------------------------------------- shell


def test_shell(ctl: Ctl, office: str, tmp_path: Path) -> None:
    ctl.environment |= {"SHELL": "/bin/sh", "PS1": "inside$ "}
    with ctl.terminal("shell", office) as terminal:
        terminal.wait_screen("inside$ ")
        terminal.type('ls /sys/class/net >/dev/null; echo "in $WG4NETNS"; exit 3\n')
        assert terminal.wait_status() == 3
        assert "in office" in terminal.screen


# ---------------------------------------------------------------- the real wg


def test_wg(ctl: Ctl, office: str, stage: Stage) -> None:
    shown = ctl.check("wg", office, "show")
    assert shown.startswith("interface: wg0\n")
    assert stage.far.public_key in shown
    assert f"PrivateKey = {stage.clients[0].private_key}" in ctl.check(
        "wg", office, "showconf", "wg0"
    )
    peer = ("peer", stage.far.public_key, "persistent-keepalive", "7")
    ctl.check("wg", office, "set", "wg0", *peer)
    assert "\t7\n" in ctl.check("wg", office, "show", "wg0", "persistent-keepalive")
    assert ctl.check("wg", office, "show", "interfaces") == "wg0\n"  # and no other's


def test_wg_reads_files_of_the_hosts(ctl: Ctl, office: str, stage: Stage, tmp_path: Path) -> None:
    """Also those in /run, where its sockets are."""
    before = set(os.listdir("/run"))
    for directory in (tmp_path, Path("/run/small")):
        key = directory / "psk"
        key.write_text(stage.clients[0].preshared_key)
        ctl.check(
            "wg", office, "set", "wg0", "peer", stage.far.public_key, "preshared-key", str(key)
        )
        key.unlink()
    assert set(os.listdir("/run")) == before
