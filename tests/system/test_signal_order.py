"""The order of signals: among themselves, to a call's reply, to what a subscriber reads then."""

from pathlib import Path
from typing import Any

from jeepney import HeaderFields

from support.bus import MANAGER, ROOT, TUNNEL, Client, DBusError
from support.buses import ON_BOTH
from support.daemon import Daemon
from support.monitors import Busctl, Message, as_signal, assert_a_chain, changes
from support.namespaces import MakeNamespace
from support.processes import wait_for
from support.stage import Stage
from support.tunnels import reconfigure, tunnel

pytestmark = ON_BOTH

PATH = f"{ROOT}/tunnel/watched"


def test_each_state_begins_where_the_last_one_ended(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    with Busctl(daemon.address) as monitor:
        with tunnel(client, inside, stage.conf(0), wait="handshake") as path:
            for _ in range(3):
                client.tunnel(path, "Restart")
        signals = monitor.signals()
    assert_a_chain(signals, "StateChanged")
    assert_a_chain(signals, "PeerStateChanged")
    # The property is there first.
    property_ = "starting"
    for each in signals:
        if each.member == "PropertiesChanged":
            property_ = each.body[1].get("State", {"data": property_})["data"]
        elif each.member == "StateChanged":
            assert property_ == each.body[0]
    states = [values["State"] for values, _ in changes(signals) if "State" in values]
    assert states == [each.body[0] for each in signals if each.member == "StateChanged"]


def test_nothing_is_said_of_a_tunnel_before_it_is_announced_or_after_it_is_gone(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    with Busctl(daemon.address) as monitor:
        for _ in range(5):
            with tunnel(client, inside, stage.conf(0), wait="handshake", name="watched"):
                pass
        signals = monitor.signals()
    assert [each.member for each in signals].count("InterfacesAdded") == 5
    known = False
    for each in signals:
        if each.path == ROOT:
            known = each.member == "InterfacesAdded"
        else:
            assert known, each


def test_what_a_call_causes_comes_before_its_reply(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    with Busctl(daemon.address) as monitor:
        path = client.create(inside, stage.conf(0), wait="handshake")
        client.tunnel(path, "Restart")
        reconfigure(client, path, stage.conf(0, MTU="1400"))
        client.close_tunnel(path)
        messages = monitor.catch_up()
    key = stage.far.public_key

    created = before_the_reply(messages, "CreateTunnel")
    assert ("StateChanged", "up") in created
    assert ("Handshake", key) in created
    assert ("InterfacesAdded", path) in created
    restarted = before_the_reply(messages, "Restart")
    assert restarted.index(("StateChanged", "restarting")) < restarted.index(("StateChanged", "up"))
    assert before_the_reply(messages, "Reconfigure")[-1] == ("PropertiesChanged", TUNNEL)
    closed = before_the_reply(messages, "Close")
    assert closed.index(("StateChanged", "stopping")) < closed.index(("StateChanged", "closed"))
    assert closed[-1] == ("InterfacesRemoved", path)


def before_the_reply(messages: list[Message], member: str) -> list[tuple[str, Any]]:
    """The signals from a call to its reply: their names and first values."""
    (call,) = (m for m in messages if m["type"] == "method_call" and m["member"] == member)
    (reply,) = (
        m
        for m in messages
        if (m.get("destination"), m.get("reply_cookie")) == (call["sender"], call["cookie"])
    )
    between = messages[messages.index(call) : messages.index(reply)]
    signals = [as_signal(each) for each in between if each["type"] == "signal"]
    return [(each.member, each.body[0]) for each in signals]


class Asker:
    """A subscriber who, at each signal about a state, asks for that state."""

    def __init__(self, client: Client, applet: Client, key: str) -> None:
        self.client, self.applet, self.key = client, applet, key
        self.told: dict[str, list[str]] = {"StateChanged": [], "PeerStateChanged": []}
        self.found: dict[str, list[str]] = {"StateChanged": [], "PeerStateChanged": []}
        applet.subscribe(interface=TUNNEL)

    def listen_until(self, *states: str, peer: str) -> None:
        """Until the tunnel has been in all these, and its peer is in that."""

        def told() -> bool:
            for message in self.applet.pending_signals():
                if (member := message.header.fields[HeaderFields.member]) in self.told:
                    self.told[member].append(message.body[1 if member == "PeerStateChanged" else 0])
                    self.found[member].append(self._ask(member))
            newest = self.told["PeerStateChanged"][-1:]
            return self.told["StateChanged"] == list(states) and newest == [peer]

        wait_for(told, f"the tunnel has been {states}, its peer is {peer}", 20)

    def _ask(self, member: str) -> str:
        try:
            if member == "StateChanged":
                return str(self.client.get(PATH, "State"))
            peers = self.client.get(PATH, "Peers")
            return str(peers[self.key]["state"][1]) if self.key in peers else "not there"
        except DBusError as error:
            if error.short_name != "UnknownObject":
                raise
            return "gone"

    def assert_never_behind(self) -> None:
        """Each answer is what the signal said, or what a later one did."""
        for member, told in self.told.items():
            for number, answer in enumerate(self.found[member]):
                assert answer in [*told[number:], "gone"], (
                    f"{member} {told}: after number {number}, it is {answer}"
                )


def test_whoever_asks_at_a_signal_is_told_no_less(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    conf = tmp_path / "wg.conf"
    conf.touch(mode=0o600)
    conf.write_text(stage.conf(0))
    inside = namespace()
    options = {"name": ("s", "watched"), "wait": ("s", "handshake")}
    create = (inside.path, str(conf), options)
    with Client(daemon.address) as applet:
        asker = Asker(client, applet, stage.far.public_key)
        client.send(client.message(ROOT, MANAGER, "CreateTunnelFromPaths", "ssa{sv}", create))
        asker.listen_until("up", peer="active")
        client.send(client.message(PATH, TUNNEL, "Restart"))
        asker.listen_until("up", "restarting", "up", peer="active")
        client.send(client.message(PATH, TUNNEL, "Close"))
        asker.listen_until("up", "restarting", "up", "stopping", "closed", peer="stale")
    asker.assert_never_behind()
