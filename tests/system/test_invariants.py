"""What always holds, by name; that nothing blocks the event loop is in test_responsiveness.py."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import doctor, engines
from support.bus import CREATE, ROOT, TUNNEL, Bus, Client, DBusError
from support.configs import Secrets
from support.daemon import Daemon
from support.depth import depth
from support.fds import memfd, opened, udp_port_in_use
from support.namespaces import MakeNamespace, Namespace
from support.processes import children, is_alive, only_child, open_fds, resident, wait_for
from support.stage import Stage, keys

pytestmark = pytest.mark.long


def engines_with_a_tun(daemon: Daemon) -> set[int]:
    """Those that carry packets; the one that waits for the next tunnel has no TUN."""
    return {pid for pid in daemon.engines() if "/dev/net/tun" in engines.descriptors(pid).values()}


def kill_engine(client: Client, path: str) -> int:
    """By SIGKILL. Its process id, which is not the tunnel's any more."""
    pid = int(client.get(path, "EnginePID"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), "the engine is dead")
    return pid


def wait_replaced(client: Client, path: str, pid: int) -> None:
    wait_for(lambda: client.get(path, "EnginePID") not in (0, pid), "a new engine")
    assert client.tunnel(path, "WaitForState", "ast", ["up"], 10_000_000) == "up"


# ---------------------------------------------------------------- one engine per namespace


def test_one_engine_per_namespace(daemon: Daemon, client: Client, inside: Namespace) -> None:
    path = client.create(inside, Secrets().conf())
    engine = {client.get(path, "EnginePID")}
    assert engines_with_a_tun(daemon) == engine
    for again in range(3):
        with pytest.raises(DBusError, match="AlreadyExists"):
            client.create(inside, Secrets().conf(), name=f"again{again}", interface=f"wg{again}")
        assert engines_with_a_tun(daemon) == engine
    client.tunnel(path, "Restart")
    assert engines_with_a_tun(daemon) == {client.get(path, "EnginePID")} != engine
    client.close_tunnel(path)
    assert engines_with_a_tun(daemon) == set()


def test_never_two_engines_on_one_tun(daemon: Daemon, client: Client, inside: Namespace) -> None:
    path = client.create(inside, Secrets().conf())
    seen: list[set[int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(engines_with_a_tun(daemon))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(5):
            client.tunnel(path, "Restart")
        for _ in range(3):
            wait_replaced(client, path, kill_engine(client, path))
    finally:
        done.set()
        watcher.join()
    assert max(map(len, seen)) == 1
    assert len(set().union(*seen)) > 3


# ---------------------------------------------------------------- the daemon keeps the TUN

# One line of standard input to the echo server, one back.
TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
    for line in sys.stdin:
        connection.sendall(line.encode())
        print(connection.recv(len(line)).decode(), end="", flush=True)
"""
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 4242)):
    print("listening", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(inside: Namespace, program: str, *arguments: str) -> Iterator[Callable[[str], str]]:
    """A program inside; say a line to it and hear one."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with inside.popen(sys.executable, "-c", program, *arguments, **streams) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def say(line: str) -> str:
            if line:
                print(line, file=process.stdin, flush=True)
            return str(process.stdout.readline()).strip() if process.stdout else ""

        yield say
        process.stdin.close()
        assert process.wait(30) == 0


def network(inside: Namespace) -> Any:
    """Its interfaces, addresses and routes."""
    links = [{**each, "stats64": None} for each in inside.ip("address", "show")]
    return links, inside.ip("route", "show"), inside.ip("-6", "route", "show")


def test_an_engine_that_dies_takes_nothing_with_it(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> None:
    path = client.create(inside, stage.conf(0))
    before, shown = network(inside), client.get_all(path)
    far = (stage.far.ipv4, str(stage.far.echo_port))
    mine = stage.clients[0].ipv4
    with running(inside, TALK, *far) as talk, running(inside, LISTEN, mine) as listener:
        assert listener("") == "listening"
        for times in range(1, 4):
            assert talk(f"hello {times}") == f"hello {times}"
            wait_replaced(client, path, kill_engine(client, path))
            assert network(inside) == before
            assert client.get(path, "RestartCount") == times
            assert f"{mine}:4242" in inside.check("ss", "-Hltn")
        assert talk("and on") == "and on"
    after = client.get_all(path)
    assert {after[name] for name in ("ListenPort", "PublicKey", "State")} == {
        shown[name] for name in ("ListenPort", "PublicKey", "State")
    }
    assert "SIGKILL" in after["LastError"][1]


def test_a_crash_loop_ends_in_failed_and_restart_revives_it(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    inside: Namespace,
    stage: Stage,
) -> None:
    path = client.create(inside, stage.conf(0))
    before = network(inside)
    killed: set[int] = set()

    def kill_and_see() -> bool:
        pid = client.get(path, "EnginePID")
        if pid and pid not in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        return bool(client.get(path, "State") == "failed")

    wait_for(kill_and_see, "it is given up", 40)
    shown = client.get_all(path)
    assert shown["EnginePID"] == 0
    assert shown["LastError"][0] == "org.wg4netns1.Error.EngineFailed"
    assert shown["LastError"][1].startswith("EngineFailed: wireguard-go ")
    assert "SIGKILL" in shown["LastError"][1]
    assert engines_with_a_tun(daemon) == set()
    told = doctor.ask(env={"DBUS_SESSION_BUS_ADDRESS": bus.address})["daemon"]
    assert told.status == "problem"
    assert told.commands == [f"wg4netnsctl restart {shown['Name']}"]
    # Nothing leaves in the clear.
    assert network(inside) == before
    (route,) = inside.ip("route", "get", "203.0.113.1")
    assert route["dev"] == "wg0"
    with pytest.raises(DBusError) as refused:
        client.peers(path)
    assert refused.value.short_name == "EngineFailed"
    assert "is failed" in refused.value.message

    # Nobody takes its port meanwhile.
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        pytest.raises(OSError, match="Address already in use"),
    ):
        other.bind(("0.0.0.0", shown["ListenPort"]))

    with Client(bus.address) as applet:
        applet.subscribe(interface=TUNNEL, member="StateChanged")
        client.tunnel(path, "Restart")
        assert client.get(path, "ListenPort") == shown["ListenPort"]
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        assert client.get(path, "RestartCount") == shown["RestartCount"] + 1
        states = [s.body[:2] for s in applet.pending_signals() if s.header.fields[2] == TUNNEL]
    assert states == [("restarting", "failed"), ("up", "restarting")]
    assert network(inside) == before


def test_a_tunnel_closes_when_its_interface_is_deleted(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace
) -> None:
    client.subscribe(interface=TUNNEL, member="StateChanged")
    client.create(inside, Secrets().conf())
    inside.check("ip", "link", "delete", "wg0")
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended")
    reasons = [s.body[2] for s in client.pending_signals() if s.body[0] == "closed"]
    assert reasons == ["the interface was deleted"]


def test_an_engine_that_waits_may_die(daemon: Daemon, client: Client, inside: Namespace) -> None:
    """It is nobody's yet."""
    for _ in range(3):
        waiting = wait_for(daemon.engines, "one waits")
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda dead=waiting: dead.isdisjoint(children(daemon.pid)), "the daemon knows of it"
        )
        client.close_tunnel(client.create(inside, Secrets().conf()))


# ---------------------------------------------------------------- complete or absent


def assert_absent(daemon: Daemon, client: Client, inside: Namespace) -> None:
    """At once, as the caller already has its error."""
    assert client.tunnels() == []
    assert "wg0" not in inside.links()
    assert engines_with_a_tun(daemon) == set()
    assert list(daemon.directory.iterdir()) == []
    shown = client.call(ROOT, "org.freedesktop.DBus.Introspectable", "Introspect")
    assert "<node name=" not in shown


def own_key_as_peer() -> str:
    pair = keys()
    return (
        f"[Interface]\nPrivateKey = {pair.private}\nAddress = 10.9.0.2\n"
        f"[Peer]\nPublicKey = {pair.public}"
    )


@pytest.mark.parametrize(
    ("text", "error", "fragment"),
    [
        pytest.param(
            lambda _: Secrets().conf("Address = 10.9.0.2/24, ff02::9/64"),
            "TunFailed",
            "address ff02::9/64 on wg0: Cannot assign requested address",
            id="address",
        ),
        pytest.param(
            lambda _: Secrets().conf("Address = 10.9.0.2", "AllowedIPs = 10.77.0.0/16"),
            "TunFailed",
            "route 10.77.0.0/16 dev wg0: File exists",
            id="route",
        ),
        pytest.param(
            lambda port: Secrets().conf(f"Address = 10.9.0.2\nListenPort = {port}"),
            "EngineFailed",
            "ListenPort: the port is in use",
            id="port",
        ),
        pytest.param(
            lambda _: own_key_as_peer(),
            "InvalidConfig",
            "line 4: PublicKey: this is the interface's own: expected the peer's",
            id="own-key",
        ),
    ],
)
def test_a_create_that_fails_leaves_nothing(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    text: Callable[[int], str],
    error: str,
    fragment: str,
) -> None:
    inside.check("ip", "link", "set", "lo", "up")
    inside.check("ip", "route", "add", "10.77.0.0/16", "dev", "lo")
    taken, port = udp_port_in_use()
    with taken, pytest.raises(DBusError) as failed:
        client.create(inside, text(port))
    assert failed.value.short_name == error
    assert fragment in failed.value.message
    assert_absent(daemon, client, inside)


@pytest.mark.parametrize("killed", ["agent", "its child"])
def test_a_dead_agent_is_no_half_tunnel(
    start_daemon: Callable[..., Daemon], inside: Namespace, killed: str
) -> None:
    started = start_daemon()
    agent = started.agent
    child = only_child(agent)
    os.kill(child if killed == "its child" else agent, signal.SIGKILL)
    if killed == "agent":  # without it there is nothing to serve for: systemd restarts us
        assert started.process.wait(20) == 1
        started.client.close()
    else:
        wait_for(lambda: child not in children(agent), "the child is gone")
        started.client.close_tunnel(started.client.create(inside, Secrets().conf()))
        started.assert_idle()


def test_a_create_whose_time_is_over_at_any_step_leaves_nothing(
    daemon: Daemon, client: Client, inside: Namespace
) -> None:
    began = time.monotonic()
    client.close_tunnel(client.create(inside, Secrets().conf()))
    whole_usec = int((time.monotonic() - began) * 1e6)
    outcomes = set()
    for usec in range(200, whole_usec * 2, whole_usec // 50):
        try:
            path = client.create(inside, Secrets().conf(), timeout_usec=("t", usec))
        except DBusError as error:
            outcomes.add(error.short_name)
        else:
            outcomes.add("up")
            client.close_tunnel(path)
        assert_absent(daemon, client, inside)
    assert outcomes == {"Timeout", "up"}


# ---------------------------------------------------------------- secrets stay out of sight


@contextlib.contextmanager
def monitored(address: str, log: Path) -> Iterator[None]:
    """All that is on the bus goes to the log."""
    command = ["dbus-monitor", "--address", address]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as monitor,
        Client(address) as client,
    ):
        try:
            wait_for(lambda: client.bus("GetId") and log.stat().st_size, "it listens")
            yield
            client.has_owner("org.example.End")
            wait_for(lambda: "org.example.End" in log.read_text(), "it has heard all")
        finally:
            monitor.terminate()


def test_secrets_stay_out_of_sight(
    start_daemon: Callable[..., Daemon], namespace: MakeNamespace, tmp_path: Path
) -> None:
    started = start_daemon("--verbose")
    client = started.client
    secrets = Secrets()
    inside = namespace()
    heard = tmp_path / "monitor.log"
    with monitored(started.address, heard):
        config = tmp_path / "wg.conf"
        config.touch(mode=0o600)
        config.write_text(secrets.conf())
        by_path = client.manager(
            "CreateTunnelFromPaths", "ssa{sv}", namespace().path, str(config), {}
        )
        by_fd = client.create(inside, secrets.conf())
        for path in (by_path, by_fd):
            client.tunnel(path, "Restart")
            client.peers(path)
            client.get_all(path)
            wait_replaced(client, path, kill_engine(client, path))
        client.manager("Describe")
        client.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        mangled = secrets.conf().replace("=\n", "\n")
        misplaced = f"[Interface]\nAddress = {secrets.new()}\n"
        for broken in (mangled, misplaced, f"{secrets.new()}\n", f"[{secrets.new()}]\n"):
            with pytest.raises(DBusError, match="InvalidConfig"):
                client.create(namespace(), broken)

        looked_at = 0
        for entry in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ", "comm"):
                with contextlib.suppress(OSError):  # another user's; the agent's, by its choice
                    secrets.assert_hidden_in((entry / name).read_bytes().decode(errors="replace"))
                    looked_at += entry.name in {str(pid) for pid in started.engines()}
        assert looked_at >= 4
        for path in (by_path, by_fd):
            environment = engines.environment(client.get(path, "EnginePID"))
            assert set(environment) == {"WG_HANDOVER_FD", "WG_EVENT_FD"}
            assert all(number.isdecimal() for number in environment.values())
    files = [file for file in started.runtime.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"resolv.conf"}
    for file in files:
        secrets.assert_hidden_in(file.read_text())
    for text in (heard.read_text(), started.log):
        assert f"ns{inside.id[1]}" in text
        assert "InvalidConfig: " in text
        secrets.assert_hidden_in(text)


def test_no_core_dump_has_a_secret(start_daemon: Callable[..., Daemon], inside: Namespace) -> None:
    """There is none, wherever it is started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # A piped core_pattern takes 1, not 0, for "none". A process whose limit is 0 cannot raise it:
    # sudo leaves 0, and root of a container may not undo that (tests/stage/world).
    none = "1" if hard else "0"
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        started = start_daemon()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    path = started.client.create(inside, Secrets().conf())
    for pid in (started.pid, started.client.get(path, "EnginePID")):
        limits = Path(f"/proc/{pid}/limits").read_text()
        (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == [none, none]


# ---------------------------------------------------------------- every fd has one owner

CYCLES = depth(200, 1000)
LIFETIMES = ["persistent", "client", "persistent", "namespace"]
"""The last takes five times as long as the others."""


def test_cycles_leave_nothing(daemon: Daemon, client: Client, namespace: MakeNamespace) -> None:
    spaces = [namespace() for _ in range(4)]
    text = Secrets().conf(peer=None)

    def cycle(number: int) -> None:
        with opened(spaces[number % len(spaces)].path) as netns, memfd(text) as config:
            made = {"lifetime": ("s", LIFETIMES[number % 4])}
            path = client.manager("CreateTunnel", CREATE, netns, config, made)
        client.tunnel(path, "Close")

    for number in range(100):
        cycle(number)
    daemon.assert_idle()
    fds, family, memory = daemon.idle.fds, daemon.idle.children, resident(daemon.pid)
    for number in range(CYCLES):
        cycle(number)
    daemon.assert_idle()
    assert (len(open_fds(daemon.pid)), len(children(daemon.pid))) == (fds, family)
    # What a cycle leaves behind adds up; a kilobyte each would show.
    assert (resident(daemon.pid) - memory) / 1024 < CYCLES
    assert all(set(inside.links()) == {"lo"} for inside in spaces)
