"""`up`, and the commands for a tunnel that is up: `exec`, `show`, `reload`, `wg`, `down`, …"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import MANAGER, ROOT, Client
from support.ctl import PROGRAM, Ctl, ctl_with_office
from support.daemon import Daemon
from support.namespaces import MakeNamespace, ping
from support.stage import SMALL, Stage
from wg4netnsd.ctl.client import Client as BusClient
from wg4netnsd.ctl.failure import Failure

PING = ("ping", "-c1", "-W5")


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    conf = stage.conf(0, DNS="198.51.100.1, example.com")
    with ctl_with_office(daemon.address, directory, client, conf) as ctl:
        yield ctl
        ctl.down_all(client)


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
    """So a service manager sees it as the main process, and its signals reach it."""
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
    done = ctl.run("down", "nobody", office, "nobody-else")
    assert done.returncode == 3
    assert "'nobody'" in done.stderr
    assert "'nobody-else'" in done.stderr
    assert client.tunnels() == []


def test_attach(ctl: Ctl, namespace: MakeNamespace, client: Client, stage: Stage) -> None:
    inside = namespace()
    assert ctl.check("attach", "--pid", str(inside.pid), "office") == "office\n"
    ping(inside, stage.far.ipv4)
    enter = ("exec", "--trust-root", "office")
    ctl.check(*enter, "--", *PING, stage.far.ipv4)  # the owner's map makes us root there
    assert ctl.check(*enter, "id", "-u") == "0\n"
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
        (["up", "nobody"], 5, ["nobody.conf", "No such file"]),
        (["up", "--mtu", "-1", "office"], 2, ["'-1': expected bytes"]),
        (["up", "--mtu", "0", "office"], 2, ["'0': expected bytes"]),
        (["up", "--mtu", "99999999999", "office"], 2, ["expected bytes"]),
        (["up", "--interface", "", "office"], 2, ["'' is not an interface name"]),
        (["up", "--interface", "x\udcff", "office"], 2, ["'x?' is not an interface name"]),
        (["up", "--ignore", "\udcff", "office"], 2, ["expected keys such as PostUp"]),
        (["attach", "--netns", "", "office"], 1, ["No such file"]),
        (["attach", "--pid", "1", "office"], 1, ["/proc/1/ns/net"]),
        (["attach", "--pid", "x", "office"], 2, ["expected a PID"]),
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
    (peer_state,) = listed["peers"].values()
    assert peer_state in ("idle", "handshaking")


def test_a_list_on_a_terminal_is_cut(ctl: Ctl, stage: Stage, client: Client) -> None:
    more = ", ".join(f"10.9.{n}.1/24" for n in range(9))
    ctl.write("many", stage.conf(1).replace("Address = ", f"Address = {more}, "))
    ctl.check("up", "many")
    with ctl.terminal("list") as terminal:
        assert terminal.wait_status() == 0
    assert max(len(line) for line in terminal.screen.splitlines()) <= 80 + len("\x1b[32m\x1b[m")
    assert re.search(r"10\.9\.0\.1/24 .* \+\d+\r", terminal.screen)
    assert "10.9.8.1/24" in ctl.check("list")


def test_what_went_wrong(ctl: Ctl, client: Client, stage: Stage) -> None:
    ctl.write("lost", stage.conf(0, endpoint="nowhere.test:51820"))
    ctl.check("up", "lost")
    shown = ctl.check("show", "lost")
    assert re.search(r"endpoint: nowhere\.test:51820 \([A-Z][a-z ]+\)\n", shown), shown
    assert "Unresolved" not in shown


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
    peer = described["peers"][stage.far.public_key]
    assert (described["name"], peer["state"]) == ("office", "active")
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
    ctl.check("reload", office)  # read the file of that name again
    assert client.get(path, "Mtu") == 1300
    ctl.write("other", stage.conf(0, MTU="1310", PostUp="true"))
    refused = ctl.run("reload", office, "other")
    assert refused.returncode == 5
    assert "other.conf: line" in refused.stderr
    assert "that is '--ignore KEY'" in refused.stderr
    ctl.check("reload", "--ignore=PostUp", office, "other")
    assert client.get(path, "Mtu") == 1310
    assert client.get(path, "EnginePID") == engine


def test_restart(ctl: Ctl, office: str, client: Client, stage: Stage) -> None:
    ((_, path, _),) = client.tunnels()
    engine = client.get(path, "EnginePID")
    ctl.check("restart", office)
    assert client.get(path, "EnginePID") != engine
    ctl.check("exec", office, *PING, stage.far.ipv4)


# ---------------------------------------------------------------- when little works


@pytest.mark.parametrize("fds", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams(ctl: Ctl, office: str, fds: str) -> None:
    for words, status in (("list", 0), ("show nobody", 3), ("run office true", 0)):
        script = f"'{PROGRAM}' {words} {fds}"
        done = subprocess.run(["sh", "-c", script], env=ctl.environment, capture_output=True)
        assert done.returncode == status, (words, done.stderr)
        assert b"Traceback" not in done.stderr
        assert (b"nobody" in done.stderr) == (words == "show nobody" and "2>&-" not in fds)


def test_a_full_disk(ctl: Ctl, office: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAM, "list"], env=ctl.environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "wg4netnsctl: No space left on device\n"


def test_a_daemon_that_hangs(
    ctl: Ctl, daemon: Daemon, office: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", daemon.address)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with BusClient() as asking:
            reply = asking.begin(ROOT, MANAGER, "ListTunnels")
            with pytest.raises(Failure, match=r"no answer within 0\.2 s") as failure:
                reply.wait(seconds=0.2)
            assert failure.value.status == 6
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "address", ["unix:path=/nowhere;{}", "tcp:host=localhost,port=1;{}", "nonsense;{}"]
)
def test_lists_of_addresses(ctl: Ctl, office: str, address: str) -> None:
    key = "DBUS_SESSION_BUS_ADDRESS"
    ctl.environment[key] = address.format(ctl.environment[key])
    assert ctl.check("list", "-q") == "office\n"


@pytest.mark.parametrize("address", ["nonsense", "unix:", "tcp:host=localhost,port=1", ";"])
def test_no_address(ctl: Ctl, address: str) -> None:
    ctl.environment["DBUS_SESSION_BUS_ADDRESS"] = address
    done = ctl.run("list")
    assert done.returncode == 7
    assert "not an address of a bus" in done.stderr


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
    assert ctl.check("wg", office, "show", "interfaces") == "wg0\n"  # and no other interface


def test_wg_reads_files_of_the_hosts(ctl: Ctl, office: str, stage: Stage, tmp_path: Path) -> None:
    """Files in /run are readable too, where its sockets are."""
    before = set(os.listdir("/run"))
    for directory in (tmp_path, SMALL):
        key = directory / "psk"
        key.write_text(stage.clients[0].preshared_key)
        ctl.check(
            "wg", office, "set", "wg0", "peer", stage.far.public_key, "preshared-key", str(key)
        )
        key.unlink()
    assert set(os.listdir("/run")) == before
