"""Peers speak up: states, handshakes and moves, as the real protocol has them.

Where minutes would have to go by, the engine is the one whose times are 20 times shorter.
"""

import base64
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields

from support.bus import TUNNEL, Client, DBusError
from support.configs import key
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.processes import wait_for
from support.stage import Control, Stage
from support.transfer import Transfer
from support.tunnels import tunnel
from wg4netnsd.engine.engine import BINARY

pytestmark = pytest.mark.long

# The short engine's, in seconds.
REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME = 180 / 20, 120 / 20, 90 / 20
INITIATION_GAP = 0.05  # more than what a far end grants between two of them, 1/50 s

Start = Callable[..., Daemon]


def keepalive(stage: Stage, number: int = 0, seconds: int = 1, endpoint: str | None = None) -> str:
    return stage.conf(number, endpoint) + f"PersistentKeepalive = {seconds}\n"


def details(body: tuple[Any, ...]) -> dict[str, Any]:
    return {key: value for key, (_, value) in body[-1].items()}


class Told:
    """The signals of a tunnel about its peers, in order."""

    def __init__(self, client: Client, path: str | None = None) -> None:
        self.client = client
        client.subscribe(interface=TUNNEL, **({"path": path} if path else {}))

    def next(self, member: str, timeout: float = 20) -> tuple[Any, ...]:
        return tuple(self.client.next_signal(member, timeout).body)

    def until_state(self, state: str, timeout: float = 20) -> tuple[Any, ...]:
        while True:
            body = self.next("PeerStateChanged", timeout)
            if body[1] == state:
                return body


def test_a_handshake_is_told_by_both_sides(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    told = Told(client)
    before = time.time_ns() // 1000
    with tunnel(client, namespace(), stage.conf(0), wait="handshake") as path:
        key, at, _ = body = told.next("Handshake")
        assert key == stage.far.public_key
        assert before < at <= time.time_ns() // 1000
        assert details(body) == {
            "role": "initiator", "endpoint": stage.far.endpoint_v4, "missed": 0,
        }  # fmt: skip
        (shown,) = client.peers(path).values()
        assert shown["state"] == "active"
        assert shown["last_handshake_usec"] == at


def test_states_and_handshakes_come_in_order(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    with tunnel(client, inside, stage.conf(0)) as path:
        (shown,) = client.peers(path).values()
        assert shown["state"] == "idle"
        Told(client, path)
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        wait_for(lambda: _state(client, path) == "active", "the peer is active")
        signals = [
            (m.header.fields[HeaderFields.member], *m.body[1:3])
            for m in client.pending_signals()
            if m.header.fields[HeaderFields.path] == path
        ]
        assert [each[0] for each in signals] == [
            "PeerStateChanged", "Handshake", "PeerStateChanged",
        ]  # fmt: skip
        assert signals[0][1:] == ("handshaking", "idle")
        assert signals[2][1:] == ("active", "handshaking")


def _state(client: Client, path: str) -> str:
    (shown,) = client.peers(path).values()
    return str(shown["state"])


# ---------------------------------------------------------------- wait=handshake


def test_waiting_for_a_handshake_that_does_not_come_leaves_nothing(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    nowhere = stage.conf(0, "127.0.0.1:9")
    with pytest.raises(DBusError, match=r"Timeout: no handshake within 0\.5 s"):
        client.create(inside, nowhere, wait="handshake", timeout_usec=("t", 500_000))
    assert client.tunnels() == []
    assert set(inside.links()) == {"lo"}


def test_waiting_for_a_handshake_needs_a_peer(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    interface, _ = stage.conf(0).split("[Peer]")
    with pytest.raises(DBusError, match=r"InvalidConfig: no \[Peer\] section"):
        client.create(namespace(), interface, wait="handshake")
    with pytest.raises(DBusError, match="'wait': expected 'up' or 'handshake'"):
        client.create(namespace(), interface, wait="dinner")


def test_without_it_nothing_is_sent_unasked(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    with tunnel(client, namespace(), stage.conf(0)) as path:
        client.tunnel(path, "Restart")
        (shown,) = client.peers(path).values()
        assert (shown["state"], shown["tx_bytes"]) == ("idle", 0)


# ---------------------------------------------------------------- the protocol's times


def test_a_far_end_that_dies_and_comes_back(
    quick: Daemon, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    """Keepalives want a session, so a new one is tried from REKEY_AFTER_TIME on. It is stale when
    that has gone on for REKEY_ATTEMPT_TIME, and active again as soon as it can be."""
    client, inside = quick.client, namespace()
    conf = keepalive(stage, endpoint=stage.moving.endpoint_v4)
    with tunnel(client, inside, conf, wait="handshake") as path:
        told = Told(client, path)
        control.far_stop()
        key, new, old, more = told.next("PeerStateChanged")
        assert (key, new, old) == (stage.far.public_key, "handshaking", "active")
        age = time.time() - more["last_handshake_usec"][1] / 1e6
        assert REJECT_AFTER_TIME <= age < REJECT_AFTER_TIME + 1
        _, new, old, more = told.next("PeerStateChanged")
        assert (new, old) == ("stale", "handshaking")
        age = time.time() - more["last_handshake_usec"][1] / 1e6
        assert age >= REKEY_AFTER_TIME + REKEY_ATTEMPT_TIME
        assert age < REKEY_AFTER_TIME + 1 + REKEY_ATTEMPT_TIME + 1  # a keepalive a second
        assert _state(client, path) == "stale"

        control.far_start()
        back = time.time()
        told.until_state("active")
        _, at, _ = _newest_handshake(client, path)
        assert at / 1e6 - back < 1
        inside.check("ping", "-n", "-c1", "-W5", stage.far.ipv4)


def _newest_handshake(client: Client, path: str) -> tuple[str, int, str]:
    ((key, shown),) = client.peers(path).items()
    return key, shown["last_handshake_usec"], shown["state"]


def test_a_silent_peer_goes_stale_and_traffic_wakes_it(
    quick: Daemon, namespace: MakeNamespace, stage: Stage
) -> None:
    client, inside = quick.client, namespace()
    with tunnel(client, inside, stage.conf(0), wait="handshake") as path:
        told = Told(client, path)
        assert told.until_state("stale")[2] == "active"
        inside.check("ping", "-n", "-c1", "-W5", stage.far.ipv4)
        assert told.until_state("active")[2] == "handshaking"


def test_a_peer_that_never_answers(quick: Daemon, namespace: MakeNamespace, stage: Stage) -> None:
    client, inside = quick.client, namespace()
    with tunnel(client, inside, stage.conf(0, "127.0.0.1:9")) as path:
        told = Told(client, path)
        inside.run("ping", "-n", "-c1", "-W1", stage.far.ipv4)
        assert told.next("PeerStateChanged")[1:3] == ("handshaking", "idle")
        assert told.next("PeerStateChanged")[1:3] == ("stale", "handshaking")


def test_sessions_end_with_their_engine_and_begin_anew(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    """The far end sends into a session that is lost, until it is told of a new one: at once."""
    with tunnel(client, namespace(), stage.conf(0), wait="handshake") as path:
        told = Told(client, path)
        os.kill(client.get(path, "EnginePID"), signal.SIGKILL)
        assert told.next("PeerStateChanged")[1:3] == ("stale", "active")
        assert told.until_state("active")[2] == "handshaking"
        assert client.get(path, "State") in ("restarting", "up")
        assert client.tunnel(path, "WaitForState", "ast", ["up"], 10_000_000) == "up"
        assert client.get(path, "RestartCount") == 1


# ---------------------------------------------------------------- roaming


def test_a_far_end_that_moves_in_mid_stream(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    inside = namespace()
    conf = stage.conf(0, stage.moving.endpoint_v4)
    with tunnel(client, inside, conf, wait="handshake") as path:
        told = Told(client, path)
        with Transfer(inside, stage.far.ipv4, stage.far.echo_port) as transfer:
            for number in (77, 78):
                transfer.wait_for_progress()
                old = client.peers(path)[stage.far.public_key]["endpoint"]
                control.far_move(f"192.0.3.{number}")
                body = told.next("PeerEndpointChanged")
                assert body[:3] == (stage.far.public_key, f"192.0.3.{number}:51820", old)
                transfer.wait_for_progress()
            transfer.finish()
        assert client.peers(path)[stage.far.public_key]["endpoint"] == "192.0.3.78:51820"


# ---------------------------------------------------------------- the host's network


@pytest.mark.parametrize("family", ["4", "6"])
def test_a_host_that_moves_begins_anew_at_once(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, control: Control,
    family: str,
) -> None:  # fmt: skip
    """With peers that are in use; one that nobody has spoken to yet is left in peace."""
    address = {"4": "192.0.3.9/24", "6": "2001:db8:3::9/64"}[family]
    with (
        tunnel(client, namespace(), stage.conf(0), wait="handshake", name="in-use") as used,
        tunnel(client, namespace(), stage.conf(1), name="idle") as idle,
    ):
        told = Told(client, used)
        _, before, _ = _newest_handshake(client, used)
        control.host_address_add(address)
        _, at, _ = told.next("Handshake")
        assert at > before
        control.host_address_delete(address)
        _, again, _ = told.next("Handshake")
        assert again > at
        assert _newest_handshake(client, idle)[1:] == (0, "idle")
        assert client.get(used, "RestartCount") == 0


def test_a_peer_that_went_stale_in_silence_is_not_woken(
    quick: Daemon, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    client = quick.client
    with (
        tunnel(client, namespace(), stage.conf(0), wait="handshake") as silent,
        tunnel(client, namespace(), keepalive(stage, 1), wait="handshake") as kept,
    ):
        Told(client, silent).until_state("stale")
        _, before, _ = _newest_handshake(client, silent)
        told = Told(client, kept)
        control.host_address_add("192.0.3.9/24")
        told.next("Handshake")
        assert _newest_handshake(client, silent)[1:] == (before, "stale")


NOTICED = "default route changed"
"""In the daemon's log; maybe with addresses, which the end of another test takes back."""


def test_another_default_route_too(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    with tunnel(client, namespace(), stage.conf(0), wait="handshake") as path:
        told = Told(client, path)
        _, last, _ = _newest_handshake(client, path)
        for change in (control.host_default_add, control.host_default_delete):
            before = daemon.log.count(NOTICED)
            change()
            # Before the next change: what comes and goes meanwhile is none to the daemon.
            wait_for(lambda before=before: daemon.log.count(NOTICED) > before, "it is noticed")
            _, at, _ = told.next("Handshake")
            assert at > last
            last = at


# ---------------------------------------------------------------- more than can be told


def _engine(daemon: Daemon, name: str, text: str) -> str:
    """Ask an engine over UAPI, as the daemon does."""
    (path,) = (daemon.directory / name).glob("*.sock")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(text.encode() + b"\n\n")
        reply = b""
        while not reply.endswith(b"\n\n"):
            reply += connection.recv(65536)
    assert "errno=0" in reply.decode()
    return reply.decode()


def _initiate(daemon: Daemon, name: str, *public_keys: str) -> None:
    lines = [f"public_key={_hex(each)}\nupdate_only=true\ninitiate=true" for each in public_keys]
    _engine(daemon, name, "\n".join(["set=1", *lines]))


def _hex(public_key: str) -> str:
    return base64.b64decode(public_key).hex()


def test_many_handshakes_are_told_slower_and_the_last_one_always(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    with tunnel(client, namespace(), stage.conf(0), wait="handshake", name="busy") as path:
        Told(client, path)
        (shown,) = client.peers(path).values()
        times = [shown["last_handshake_usec"]]
        for _ in range(40):
            _initiate(daemon, "busy", stage.far.public_key)
            times.append(wait_for(lambda: _newer(client, path, times[-1]), "one more handshake"))
            time.sleep(INITIATION_GAP)
        told, missed = [], 0
        while not told or told[-1] != times[-1]:
            body = client.next_signal("Handshake", 20).body
            told.append(body[1])
            missed += details(body)["missed"]
        assert len(told) < len(times) - 1
        assert set(told) <= set(times)
        assert len(told) + missed in (len(times) - 1, len(times))  # the first may be among them


def _newer(client: Client, path: str, than: int) -> int:
    _, at, _ = _newest_handshake(client, path)
    return at if at > than else 0


def test_events_that_were_lost_are_asked_for(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    """The daemon stands still until the engine's pipe is full, which the engine survives.

    Then it has more signals to send at once than its socket to the bus takes.
    """
    inside = namespace()
    silent = [key() for _ in range(1200)]  # an event of some 75 bytes each, into a pipe of 65536
    more = "".join(f"[Peer]\nPublicKey = {each}\nEndpoint = 127.0.0.1:9\n" for each in silent)
    conf = tmp_path / "conf"
    conf.touch(mode=0o600)
    conf.write_text(stage.conf(0) + more)
    options = {"name": ("s", "full")}
    path = client.manager("CreateTunnelFromPaths", "ssa{sv}", inside.path, str(conf), options)
    try:
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        told = Told(client, path)
        before = client.peers(path)[stage.far.public_key]["last_handshake_usec"]
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            _initiate(daemon, "full", *silent)
            _initiate(daemon, "full", stage.far.public_key)  # whose completion nobody tells
            at = wait_for(lambda: _settled(daemon, "full", stage, before), "it is complete")
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        while told.next("Handshake")[1] != at:
            pass
        shown = client.peers(path)[stage.far.public_key]
        assert (shown["last_handshake_usec"], shown["state"]) == (at, "active")
    finally:
        client.close_tunnel(path)


def _settled(daemon: Daemon, name: str, stage: Stage, before: int) -> int:
    """When the last handshake was, in µs, if it is after `before` and none has followed since."""
    _, far = _engine(daemon, name, "get=1").split(f"public_key={_hex(stage.far.public_key)}\n")
    fields = dict(line.split("=", 1) for line in far.partition("public_key=")[0].splitlines())
    at = int(fields["last_handshake_time_sec"]) * 10**6
    at += int(fields["last_handshake_time_nsec"]) // 1000
    return at if at > before and time.time() - at / 1e6 > 0.3 else 0


def test_an_event_that_is_none_does_no_harm(
    start_daemon: Start, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    """A fake, as the real engine can't be made to write rubbish: the real one, but noisy."""
    noisy = tmp_path / "noisy"
    noisy.write_text(
        f"#!{sys.executable}\n"
        "import os\n"
        "for line in ('rubbish', 'completed xyz', 'timers a b', 9000 * 'x'):\n"
        "    os.write(int(os.environ['WG_EVENT_FD']), line.encode() + b'\\n')\n"
        f"os.execv({str(BINARY)!r}, ['wireguard-go'])\n"
    )
    noisy.chmod(0o755)
    daemon = start_daemon("--engine", str(noisy))
    with tunnel(daemon.client, namespace(), stage.conf(0), wait="handshake") as path:
        assert _state(daemon.client, path) == "active"
    assert "not an event" in daemon.log


def test_the_events_of_two_engines_are_kept_apart(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    with (
        tunnel(client, namespace(), stage.conf(0)) as quiet,
        tunnel(client, namespace(), stage.conf(1), wait="handshake") as loud,
    ):
        assert _state(client, quiet) == "idle"
        assert _state(client, loud) == "active"


def test_describe_has_it_too(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    with tunnel(client, namespace(), stage.conf(0), wait="handshake"):
        (described,) = json.loads(client.manager("Describe"))["tunnels"]
        (peer,) = described["Peers"].values()
        assert peer["state"] == "active"
        assert peer["endpoint"] == stage.far.endpoint_v4
        assert peer["endpoint_error"] == ""
