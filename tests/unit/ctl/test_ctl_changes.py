"""The events that `wg4netnsctl monitor` makes of signals, without a bus."""

from typing import Any

from support.bus import TUNNEL
from support.played import PATH, PEER, Objects, objects
from wg4netnsd.ctl.changes import Changes
from wg4netnsd.ctl.client import Signal


def signal(member: str, *body: Any) -> Signal:
    return Signal(PATH, TUNNEL, member, body, usec=2)


def peer_state(new: str, old: str, missed: int = 0) -> Signal:
    return signal("PeerStateChanged", PEER, new, old, {"missed": ("u", missed)})


def news(snapshot: Objects, *early: Signal) -> list[tuple[str | None, str | None]]:
    """(old, new) of the events after the snapshot."""
    events = Changes([]).snapshot(snapshot, 1, early)
    return [(each.old, each.new) for each in events if not each.snapshot]


def test_what_led_to_the_snapshot_is_no_news() -> None:
    to_active = [peer_state("handshaking", "idle"), peer_state("active", "handshaking")]
    assert news(objects("active"), *to_active) == []
    assert news(objects("handshaking"), *to_active) == [("handshaking", "active")]
    assert news(objects("idle"), *to_active) == [("idle", "handshaking"), ("handshaking", "active")]


def test_changes_that_were_merged_are_shown() -> None:
    """Their old state is the last one reported, not the one before them."""
    assert news(objects("stale"), peer_state("active", "idle", missed=3)) == [("idle", "active")]


def test_a_handshake_is_shown_once() -> None:
    handshakes = [signal("Handshake", PEER, at, {"role": ("s", "initiator")}) for at in (4, 5, 6)]
    events = Changes([]).snapshot(objects("active", handshake_usec=5), 1, handshakes)
    assert [each.realtime_usec for each in events if each.event == "handshake"] == [6]


def test_the_engine_may_tell_of_a_handshake_when_asked_and_then_again() -> None:
    changes = Changes([])
    list(changes.snapshot(objects("active", handshake_usec=5), 1, []))
    assert list(changes.apply(signal("Handshake", PEER, 5, {}))) == []
    assert list(changes.apply(peer_state("active", "handshaking"))) == []
    assert [each.new for each in changes.apply(peer_state("stale", "active"))] == ["stale"]


def test_a_daemon_that_is_killed_takes_its_tunnels_with_it() -> None:
    changes = Changes([])
    list(changes.started(1))
    list(changes.snapshot(objects("idle"), 1, []))
    ended = [(each.event, each.tunnel, each.reason) for each in changes.stopped(2)]
    assert ended == [
        ("tunnel-removed", "t", "wg4netnsd has ended"),
        ("daemon-stopped", None, None),
    ]
    assert list(changes.apply(signal("StateChanged", "up", "failed", "late"))) == []
    assert list(changes.stopped(3)) == []


def test_later_daemons_say_more() -> None:
    changes = Changes([])
    list(changes.snapshot(objects("idle"), 1, []))
    details = {"missed": ("u", 0), "colour": ("s", "red")}
    later = signal("PeerStateChanged", PEER, "dancing", "idle", details, "more")
    assert [each.new for each in changes.apply(later)] == ["dancing"]
    assert list(changes.apply(signal("Rained", "cats"))) == []
