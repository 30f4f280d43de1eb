"""`wg4netnsctl monitor`: the real program against the real daemon."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from jeepney import DBusAddress, HeaderFields, new_signal

from support.bus import NAME, OBJECT_MANAGER, ROOT, TUNNEL, Bus, Client
from support.buses import ON_BOTH
from support.configs import key
from support.ctl import PROGRAM as CTL
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.played import PATH, PEER, Played, objects
from support.processes import wait_for
from support.relay import Relay
from support.stage import Stage, keys


class Monitor:
    """A running `wg4netnsctl monitor` that writes to a file."""

    def __init__(self, address: str, directory: Path, *arguments: str, **environment: str) -> None:
        self.output, self.errors = directory / "output", directory / "errors"
        with self.output.open("wb") as output, self.errors.open("wb") as error:
            self.process = subprocess.Popen(
                [CTL, "monitor", *arguments],
                env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": address} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error,
            )

    @property
    def lines(self) -> list[str]:
        """The complete lines so far."""
        *complete, _ = self.output.read_text().split("\n")
        return complete

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def wait_line(self, *parts: str) -> str:
        """Wait for a line with all these words, and return the first one."""
        return wait_for(lambda: self._line(parts), f"a line with {parts}")

    def has_line(self, *parts: str) -> bool:
        return bool(self._line(parts))

    def _line(self, parts: tuple[str, ...]) -> str:
        return next((line for line in self.lines if all(part in line for part in parts)), "")

    def wait_event(self, event: str, **wanted: Any) -> dict[str, Any]:
        return wait_for(lambda: self._event(wanted | {"event": event}), f"{event}, {wanted}")

    def _event(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return next((each for each in self.events if wanted.items() <= each.items()), {})

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(10)


@pytest.fixture
def monitor() -> Iterator[Callable[..., Monitor]]:
    """Start monitors: monitor(address, *arguments, **environment). Each must end without errors."""
    with contextlib.ExitStack() as stack:
        started: list[Monitor] = []

        def start(address: str, *arguments: str, **environment: str) -> Monitor:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            started.append(Monitor(address, directory, *arguments, **environment))
            stack.callback(started[-1].process.kill)
            return started[-1]

        yield start
        for each in started:
            if each.process.returncode is None:  # the test has not waited for it
                assert each.end() == 0
                assert each.errors.read_text() == ""


@pytest.fixture
def own_bus(bus_program: str) -> Iterator[Bus]:
    """A bus with no other clients."""
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        started = Bus(Path(directory), program=bus_program)
        yield started
        started.close()


def conf(interface: str = "") -> str:
    """A configuration without a peer."""
    return f"[Interface]\nPrivateKey = {key()}\nAddress = 10.9.0.2/24\n{interface}"


def assert_consistent(events: list[dict[str, Any]]) -> None:
    """Each tunnel and peer is added first, and each change begins at the last state reported."""
    known: dict[tuple[Any, ...], str] = {}
    for event in events:
        tunnel, peer = event.get("tunnel"), event.get("peer")
        match event["event"]:
            case "tunnel-added":
                assert (tunnel,) not in known
                known[(tunnel,)] = event["new"]
            case "tunnel-removed":
                assert event["old"] == known.pop((tunnel,))
            case "tunnel-state":
                assert event["old"] == known[(tunnel,)]
                known[(tunnel,)] = event["new"]
            case "peer-state":
                assert event.get("old") == known.get((tunnel, peer), event.get("old"))
                known[(tunnel, peer)] = event["new"]


# ---------------------------------------------------------------- what it shows


def test_a_tunnels_life(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    monitor: Callable[..., Monitor],
) -> None:
    human, machine = monitor(daemon.address), monitor(daemon.address, "--json")
    human.wait_line("wg4netnsd is running")
    assert machine.wait_event("daemon-started")["snapshot"] is True

    path = client.create(namespace(), stage.conf(0), name="office", wait="handshake")
    far = stage.far.public_key
    added = machine.wait_event("tunnel-added", tunnel="office")
    assert (added["new"], added["snapshot"], added["class"]) == ("starting", False, "starting")
    machine.wait_event("tunnel-state", tunnel="office", new="up", old="starting")
    shaken = machine.wait_event("handshake", tunnel="office", peer=far, role="initiator")
    assert shaken["endpoint"] == stage.far.endpoint_v4
    assert shaken["realtime_usec"] == client.peers(path)[far]["last_handshake_usec"]
    active = machine.wait_event("peer-state", peer=far, new="active", old="handshaking")
    assert (active["class"], active["text"]) == ("active", f"office {far[:8]}… active")
    assert active["last_handshake_usec"] == shaken["realtime_usec"]

    human.wait_line("office", "starting → up")
    line = human.wait_line("office", f"{far[:8]}…", "handshake as initiator")
    assert line.endswith(f", at {stage.far.endpoint_v4}")
    assert line[2] == line[5] == ":" and line[8:10] == "  "
    assert far not in line

    os.kill(client.get(path, "EnginePID"), signal.SIGKILL)
    error = machine.wait_event("error", tunnel="office")
    assert error["error"] == "org.wg4netns1.Error.EngineFailed"
    assert error["reason"].startswith("EngineFailed: ")
    human.wait_line("office", "error: EngineFailed: ")
    machine.wait_event("tunnel-state", new="restarting", old="up")
    machine.wait_event("tunnel-state", new="up", old="restarting")

    client.close_tunnel(path)
    machine.wait_event("tunnel-state", tunnel="office", new="closed")
    machine.wait_event("tunnel-removed", tunnel="office", old="closed")
    human.wait_line("office", "stopping → closed: closed by request")
    assert human.wait_line("office", "removed").endswith("removed")
    assert_consistent(machine.events)
    assert all(each["text"] and each["tooltip"] and each["class"] for each in machine.events)
    assert "\x1b" not in human.output.read_text()
    command = ["jq", "-r", 'select(.event == "handshake") | .tunnel, (.time[:19] + "Z" | fromdate)']
    done = subprocess.run(command, input=machine.output.read_bytes(), capture_output=True)
    assert done.stdout.startswith(b"office\n") and done.returncode == 0


def test_a_peer_that_comes_to_us(
    daemon: Daemon, client: Client, namespace: MakeNamespace, monitor: Callable[..., Monitor]
) -> None:
    watched = monitor(daemon.address, "ours", "--json")
    watched.wait_event("daemon-started")
    ours, theirs = keys(), keys()
    known = f"[Peer]\nPublicKey = {theirs.public}\nAllowedIPs = 10.9.0.3/32\n"
    section = f"[Interface]\nPrivateKey = {ours.private}\nAddress = 10.9.0.2/24\n"
    listening = client.create(namespace(), section + known, name="ours")
    port = client.get(listening, "ListenPort")
    section = f"[Interface]\nPrivateKey = {theirs.private}\nAddress = 10.9.0.3/24\n"
    known = f"[Peer]\nPublicKey = {ours.public}\nEndpoint = 127.0.0.1:{port}\n"
    client.create(namespace(), section + known, name="theirs", wait="handshake")

    watched.wait_event("handshake", role="responder", peer=theirs.public)
    moved = watched.wait_event("peer-endpoint", peer=theirs.public)
    assert moved["old"] == "" and moved["new"].startswith("127.0.0.1:")
    watched.wait_event("peer-state", new="active", endpoint=moved["new"])
    assert {each.get("tunnel") for each in watched.events} == {None, "ours"}


def test_what_there_is_comes_first(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    monitor: Callable[..., Monitor],
) -> None:
    client.create(namespace(), stage.conf(0), name="office", wait="handshake")
    client.create(namespace(), conf(), name="a-longer-name")
    human, full = monitor(daemon.address), monitor(daemon.address, "--full")
    machine, one = monitor(daemon.address, "--json"), monitor(daemon.address, "office")
    far = stage.far.public_key
    peer = machine.wait_event("peer-state", tunnel="office", snapshot=True)
    assert (peer["peer"], peer["new"], peer["endpoint"]) == (far, "active", stage.far.endpoint_v4)
    assert peer["last_handshake_usec"] > 0
    machine.wait_event("tunnel-added", tunnel="a-longer-name", snapshot=True, new="up")
    line = human.wait_line("office", f"{far[:8]}…  active, at {stage.far.endpoint_v4}, handshake ")
    assert line.endswith(" s ago")
    full.wait_line("office         ", f"{far}  active")
    human.wait_line("  a-longer-name  up")
    human.wait_line("  office         up")
    one.wait_line("  office  up")
    client.close_tunnel(client.manager("GetTunnel", "s", "a-longer-name"))
    client.close_tunnel(client.manager("GetTunnel", "s", "office"))
    one.wait_line("office", "removed")
    assert not any("a-longer-name" in line for line in one.lines)


def test_a_locale_without_arrows(own_bus: Bus, monitor: Callable[..., Monitor]) -> None:
    """Any text can be printed, with replacements."""
    watching = monitor(own_bus.address, PYTHONIOENCODING="ascii")
    watching.wait_line("is not running")
    with Played(own_bus.address) as played:
        played.answer(played.asked(), {})
        watching.wait_line("is running")
        added = PATH, {TUNNEL: {"Name": ("s", "t"), "CreatedUSec": ("t", 1), "State": ("s", "up")}}
        its = {"path": ROOT, "interface": OBJECT_MANAGER}
        played.tell("InterfacesAdded", "oa{sa{sv}}", *added, **its)
        played.tell("StateChanged", "sss", "failed", "up", "a bell\a and\nanother line")
        watching.wait_line("t  up ? failed: a bell? and?another line")
    watching.wait_line("t  removed: wg4netnsd has ended")


def test_colours_are_for_terminals(own_bus: Bus) -> None:
    for environment, coloured in ({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False):
        ours, its = pty.openpty()
        process = subprocess.Popen(
            [CTL, "monitor"],
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": own_bus.address} | environment,
            stdout=its,
        )
        os.close(its)
        shown = b""
        while b"\n" not in shown:
            shown += os.read(ours, 1000)
        assert (b"\x1b[31m" in shown) is coloured
        os.close(ours)  # the terminal hangs up
        assert process.wait(10) == 0


# ---------------------------------------------------------------- the daemon comes and goes


def test_the_daemon_is_waited_for_and_never_started(
    own_bus: Bus, monitor: Callable[..., Monitor], tmp_path: Path, namespace: MakeNamespace
) -> None:
    started = tmp_path / "started"
    service = f"[D-BUS Service]\nName=org.wg4netns1\nExec=/usr/bin/touch {started}\n"
    (own_bus.directory / "dbus-1/services/org.wg4netns1.service").write_text(service)
    with Client(own_bus.address) as client:
        client.bus("ReloadConfig")
    human, machine = monitor(own_bus.address, "a"), monitor(own_bus.address, "--json")
    human.wait_line("wg4netnsd is not running")
    assert machine.wait_event("daemon-stopped")["snapshot"] is True

    for number, words in enumerate(["is running", "is running again"]):
        directory = tmp_path / str(number)
        directory.mkdir()
        daemon = Daemon(own_bus, directory)
        human.wait_line(f"wg4netnsd {words}")
        with Client(own_bus.address) as client:
            client.create(namespace(), conf(), name="a")
        wait_for(lambda n=number: _count(machine, "tunnel-added") == n + 1, "it is seen")
        daemon.stop()
        wait_for(lambda n=number: _count(machine, "daemon-stopped") == n + 2, "its end is seen")
        assert _count(machine, "tunnel-removed") == number + 1
    assert_consistent(machine.events)
    assert not started.exists()


def test_a_daemon_that_ends_when_it_is_asked(own_bus: Bus, monitor: Callable[..., Monitor]) -> None:
    watching = monitor(own_bus.address)
    watching.wait_line("is not running")
    with Played(own_bus.address) as without_a_word:
        without_a_word.asked()
    with Played(own_bus.address) as ending:
        # It asks again if it learns of the new owner only after its first call.
        ending.refuse_until(lambda: watching.has_line("is running"), "ShuttingDown")
    with Played(own_bus.address) as another:
        another.answer(another.asked(), {})
        watching.wait_line("is running again")


def _count(monitor: Monitor, event: str) -> int:
    return sum(each["event"] == event for each in monitor.events)


@ON_BOTH
def test_the_bus_goes_away(own_bus: Bus, monitor: Callable[..., Monitor]) -> None:
    watching = monitor(own_bus.address)
    watching.wait_line("wg4netnsd is not running")
    own_bus.process.terminate()
    assert watching.process.wait(10) == 7
    (complaint,) = watching.errors.read_text().splitlines()
    assert complaint.startswith("wg4netnsctl: the session bus is gone: ")


def test_no_bus_at_all(monitor: Callable[..., Monitor], tmp_path: Path) -> None:
    address = f"unix:path={tmp_path}/nowhere"
    watching = monitor(address)
    assert watching.process.wait(10) == 7
    environment = os.environ | {"DBUS_SESSION_BUS_ADDRESS": address}
    listing = subprocess.run([CTL, "list"], env=environment, capture_output=True, text=True)
    assert watching.errors.read_text() == listing.stderr != ""
    assert watching.lines == []


def test_a_name_that_no_tunnel_can_have(monitor: Callable[..., Monitor]) -> None:
    watching = monitor("unix:path=/nowhere", "no/tunnel")
    assert watching.process.wait(10) == 2
    assert "'no/tunnel' is not a tunnel name" in watching.errors.read_text()


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(
    own_bus: Bus, monitor: Callable[..., Monitor], number: signal.Signals
) -> None:
    watching = monitor(own_bus.address)
    watching.wait_line("wg4netnsd is not running")
    assert watching.end(number) == 0
    assert watching.errors.read_text() == ""


def test_a_signal_ends_it_though_nobody_reads(own_bus: Bus) -> None:
    """It is waiting for room in its pipe; after the signal it does not wait to write the rest."""
    many = {}
    for number in range(100):
        many |= objects("idle", name=f"t{number}")
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    with Played(own_bus.address) as played, open(reading) as unread:
        environment = os.environ | {"DBUS_SESSION_BUS_ADDRESS": own_bus.address}
        process = subprocess.Popen([CTL, "monitor"], env=environment, stdout=writing)
        os.close(writing)
        played.answer(played.asked(), many)
        wait_for(lambda: _size(unread) > 4000, "the pipe is full")
        process.terminate()
        assert process.wait(10) == 0


def _size(unread: IO[str]) -> int:
    return int.from_bytes(fcntl.ioctl(unread, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_nobody_reads_on(own_bus: Bus) -> None:
    """It ends at once, not only at the next line."""
    command = f"{CTL} monitor | head -n 1; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"DBUS_SESSION_BUS_ADDRESS": own_bus.address}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=20
    )
    first, status = done.stdout.splitlines()
    assert first.endswith("wg4netnsd is not running") and status == "0"
    assert done.stderr == ""


# ---------------------------------------------------------------- what counts


@ON_BOTH
def test_only_the_daemons_signals_are_listened_to(
    daemon: Daemon, client: Client, namespace: MakeNamespace, monitor: Callable[..., Monitor]
) -> None:
    """Others' signals are ignored, also those sent to it alone, which the bus delivers unasked."""
    watching = monitor(daemon.address)
    watching.wait_line("is running")
    watcher = unique_name(client, watching.process.pid)
    with Client(daemon.address) as forger:
        path = client.create(namespace(), conf(), name="real")
        properties = {"Name": ("s", "forged"), "CreatedUSec": ("t", 1), "State": ("s", "up")}
        added = "/org/wg4netns1/tunnel/forged", {TUNNEL: properties}
        gone = NAME, client.bus("GetNameOwner", "s", NAME), ""
        forgeries = (
            (path, TUNNEL, "StateChanged", "sss", ("failed", "up", "forged")),
            (ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", added),
            ("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", "sss", gone),
        )
        for its, interface, *forged in forgeries:
            forgery = new_signal(DBusAddress(its, interface=interface), *forged)
            forger.connection.send(forgery)
            forgery.header.fields[HeaderFields.destination] = watcher
            forger.connection.send(forgery)
        forger.bus("GetId")
        client.close_tunnel(path)
    watching.wait_line("real", "removed")
    assert not any("forged" in line or "not running" in line for line in watching.lines)


def unique_name(client: Client, pid: int) -> str:
    """The unique name of a process's connection."""
    connections = [name for name in client.bus("ListNames") if name.startswith(":")]
    return next(
        name for name in connections if client.bus("GetConnectionUnixProcessID", "s", name) == pid
    )


@ON_BOTH
def test_nothing_is_lost_and_nothing_shown_twice(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    monitor: Callable[..., Monitor],
    tmp_path: Path,
) -> None:
    """Events before, between and after the beginning of the stream and the snapshot."""
    before = client.create(namespace(), conf(), name="before")
    again = client.create(namespace(), conf(), name="again")
    with Relay(daemon.address, tmp_path) as relay:
        watching = monitor(relay.address, "--json")

        relay.hold("GetManagedObjects")  # it listens, but has not asked yet
        client.create(namespace(), conf(), name="during")
        client.close_tunnel(again)
        again = client.create(namespace(), conf(), name="again")
        brief = client.create(namespace(), conf(), name="brief")
        client.close_tunnel(brief)
        relay.pass_call()  # the daemon has answered, but the answer is held
        client.create(namespace(), conf(), name="after")
        client.tunnel(again, "Restart")
        client.close_tunnel(before)
        assert len(watching.lines) == 0
        relay.pass_reply()
        watching.wait_event("tunnel-removed", tunnel="before")
        assert watching.end() == 0
    events = watching.events
    assert_consistent(events)
    added = [each["tunnel"] for each in events if each["event"] == "tunnel-added"]
    assert sorted(added) == ["after", "again", "before", "brief", "during"]
    snapshot = {each["tunnel"] for each in events if each["snapshot"] and "tunnel" in each}
    assert snapshot == {"before", "during", "again"}
    removed = [each["tunnel"] for each in events if each["event"] == "tunnel-removed"]
    assert removed == ["brief", "before"]
    restarted = [(e["old"], e["new"]) for e in events if e.get("tunnel") == "again" and "old" in e]
    assert restarted == [("up", "restarting"), ("restarting", "up")]


def test_a_flood(own_bus: Bus, monitor: Callable[..., Monitor]) -> None:
    """The tunnel is replaced before the snapshot arrives, or after it."""
    count = 500
    with Played(own_bus.address) as played:
        watching = monitor(own_bus.address, "--json")
        call = played.asked()
        for at in range(count):
            played.tell("Handshake", "sta{sv}", PEER, at + 1, {})
        played.answer(call, objects("active"))
        for at in range(count, 2 * count):
            played.tell("Handshake", "sta{sv}", PEER, at + 1, {})
        watching.wait_event("handshake", realtime_usec=2 * count)
    shown = [each["realtime_usec"] for each in watching.events if each["event"] == "handshake"]
    assert shown == list(range(1, 2 * count + 1))


def test_many_monitors_start_while_tunnels_come(
    daemon: Daemon, client: Client, namespace: MakeNamespace, monitor: Callable[..., Monitor]
) -> None:
    tunnels = [f"t{number}" for number in range(8)]
    monitors = []
    for name in tunnels:
        monitors.append(monitor(daemon.address, "--json"))
        client.create(namespace(), conf(), name=name)
    for watching in monitors:
        watching.wait_event("tunnel-added", tunnel=tunnels[-1])
        assert_consistent(watching.events)
        added = [each["tunnel"] for each in watching.events if each["event"] == "tunnel-added"]
        assert sorted(added) == tunnels
