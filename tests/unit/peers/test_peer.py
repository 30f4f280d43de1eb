"""What is kept of one peer, in the orders of events that nobody can make an engine or a name server
show on demand."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.configs import key
from wg4netnsd.config.model import Endpoint, Peer
from wg4netnsd.engine.events import Completed, Initiated, Moved, Timers
from wg4netnsd.engine.uapi import PeerStatus
from wg4netnsd.errors import Error, Unresolved
from wg4netnsd.peers import endpoint, resolve
from wg4netnsd.peers.peer import Handshake, TunnelPeer
from wg4netnsd.peers.rate_limit import Report
from wg4netnsd.peers.state import PeerState

KEY = key()
NAME = "where.test"


@dataclass
class Recorder:
    """A peer.PeerObserver that writes down what it is told."""

    handshakes: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def handshake(self, _key: str, told: Report[Handshake]) -> None:
        self.handshakes.append(told.new.realtime_usec)

    def peer_state_changed(self, _key: str, told: Report[PeerState]) -> None:
        self.states.append(told.new)

    def peer_endpoint_changed(self, _key: str, told: Report[str]) -> None:
        self.endpoints.append(told.new)

    def peers_changed(self) -> None: ...

    def lookup_failed(self, error: Error) -> None:
        self.errors.append(str(error))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next look-ups find; none is an error."""
    addresses: list[str] = []

    async def look_up(host: str) -> list[str]:
        if not addresses:
            raise Unresolved(f"{host}: nobody knows")
        return list(addresses)

    monkeypatch.setattr(resolve, "look_up", look_up)
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)
    return addresses


def with_peer(test: Callable[[TunnelPeer, Recorder], Awaitable[None]], found: Any = None) -> None:
    """Run `test` with a peer whose host name has led to `found`; then nothing may go on."""

    async def run() -> None:
        told = Recorder()
        configured = Peer(PublicKey=KEY, Endpoint=f"{NAME}:1")
        peer = TunnelPeer(configured, Timers(), told, logging.getLogger("test"))
        name = configured.endpoint
        assert name
        looked_up = {NAME: found or Unresolved(NAME)}
        use, failed = (lambda e, _: told.used.append(e)), told.lookup_failed
        peer.set_endpoint(name, looked_up, use, failed, lambda host: resolve.look_up(host))
        peer.report_changes()
        await test(peer, told)
        peer.close()
        peer.engine_ended()  # as the end of a tunnel has it
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def completed(usec: int, age: float = 0.0) -> Completed:
    return Completed(KEY, "initiator", usec, age)


def test_a_handshake_that_the_engine_tells_twice_is_told_once() -> None:
    async def test(peer: TunnelPeer, told: Recorder) -> None:
        peer.resync(PeerStatus(KEY, last_handshake_usec=5_000_000, session_age=0.0))
        peer.handle_event(completed(4_000_000))  # was still in the pipe
        peer.handle_event(completed(5_000_000))
        assert told.handshakes == [5_000_000]
        assert told.states == ["active"]
        peer.handle_event(completed(3_000_000))  # the clock was set back
        assert told.handshakes == [5_000_000, 3_000_000]

    with_peer(test, ["192.0.2.1"])


def test_a_clock_that_was_set_makes_no_session_old_nor_unseen() -> None:
    async def test(peer: TunnelPeer, told: Recorder) -> None:
        now = time.time_ns() // 1000
        peer.handle_event(completed(now))
        peer.state_machine.expired()
        peer.resync(PeerStatus(KEY, last_handshake_usec=now - 86_400_000_000, session_age=3.0))
        assert peer.view().state is PeerState.ACTIVE
        assert len(told.handshakes) == 2
        peer.state_machine.expired()
        peer.resync(PeerStatus(KEY, last_handshake_usec=now, session_age=200.0))
        assert peer.view().state is PeerState.STALE

    with_peer(test, ["192.0.2.1"])


def test_a_handshake_whose_session_is_over_makes_nobody_active() -> None:
    async def test(peer: TunnelPeer, told: Recorder) -> None:
        peer.resync(PeerStatus(KEY, last_handshake_usec=5_000_000))
        assert peer.view().last_handshake_usec == 5_000_000
        assert told.states == ["stale"]

    with_peer(test, ["192.0.2.1"])


def test_who_answers_is_not_looked_up(resolver: list[str]) -> None:
    async def test(peer: TunnelPeer, told: Recorder) -> None:
        assert told.errors
        peer.handle_event(Moved(KEY, "192.0.2.7:9"))  # it has spoken first
        peer.handle_event(completed(1))
        resolver.append("192.0.2.1")
        await asyncio.sleep(0.05)
        assert told.used == []
        assert peer.view().lookup_error == ""
        assert peer.endpoint == "192.0.2.7:9"

    with_peer(test)


def test_a_name_that_nobody_knows_is_asked_for_until_the_end(resolver: list[str]) -> None:
    async def test(peer: TunnelPeer, told: Recorder) -> None:
        await asyncio.sleep(0.05)
        assert told.errors == [f"Unresolved: {NAME}", f"Unresolved: {NAME}: nobody knows"]

    with_peer(test)


def test_who_has_answered_is_looked_up_soon_again(
    resolver: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the pauses were by then."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def test(peer: TunnelPeer, told: Recorder) -> None:
        while len(pauses) < 5:
            await sleep(0)
        peer.handle_event(completed(1))
        assert sorted(pauses) == pauses
        assert pauses[-1] > pauses[0]
        known = len(pauses)
        peer.handle_event(Initiated(KEY))
        peer.state_machine.expired()
        peer.state_machine.gave_up()
        peer.report_changes()  # stale: it is looked up
        while len(pauses) == known:
            await sleep(0)
        assert pauses[known] <= endpoint.FIRST_DELAY

    sleep = asyncio.sleep
    monkeypatch.setattr(endpoint.asyncio, "sleep", pause)
    with_peer(test)


def test_the_end_of_an_active_peer_begins_no_look_up(resolver: list[str]) -> None:
    async def test(peer: TunnelPeer, _told: Recorder) -> None:
        peer.handle_event(Initiated(KEY))
        peer.handle_event(completed(1))

    with_peer(test, ["192.0.2.1"])


def test_who_answers_an_engine_that_was_replaced_is_in_use_no_longer_than_that() -> None:
    async def test(peer: TunnelPeer, _told: Recorder) -> None:
        peer.handle_event(completed(1))
        peer.engine_ended()
        assert peer.in_use
        peer.handle_event(Completed(KEY, "responder", 2, 0.0))
        assert peer.in_use
        peer.state_machine.expired()
        peer.report_changes()
        assert not peer.in_use

    with_peer(test, ["192.0.2.1"])


def test_the_endpoint_begins_with_the_first_endpoint() -> None:
    found = {NAME: ["2001:db8::1", "192.0.2.1"]}
    assert endpoint.first_endpoint(Endpoint(NAME, 1), found) == "[2001:db8::1]:1"
    assert endpoint.first_endpoint(Endpoint("192.0.2.9", 1), found) == "192.0.2.9:1"
    assert endpoint.first_endpoint(Endpoint("other.test", 1), found) == ""
