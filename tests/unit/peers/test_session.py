"""A peer's state: for any order of events and clock readings, it is what its definition says."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from wg4netnsd.engine.events import Timers
from wg4netnsd.peers.state import PeerState, Session

TIMERS = Timers(180, 90)

# Moments matter around the protocol's times; a suspend is a step of hours.
STEPS = st.one_of(
    st.floats(0, 400), st.sampled_from([0, 5, 89.9, 90, 90.1, 179.9, 180, 180.1, 7200, 1e6])
)
KINDS = st.sampled_from(["initiated", "completed", "gave_up", "expired", "nothing"])


@dataclass(frozen=True)
class Happened:
    kind: str
    at: float
    age: float = 0.0


def history(steps: list[tuple[str, float, float]]) -> list[Happened]:
    now, happened = 1000.0, []
    for kind, step, age in steps:
        now += step
        happened.append(Happened(kind, now, age))
    return happened


HISTORIES = st.lists(st.tuples(KINDS, STEPS, st.floats(0, 200)), max_size=30).map(history)


def session_after(happened: list[Happened]) -> Session:
    session = Session(TIMERS)
    for each in happened:
        match each.kind:
            case "initiated":
                session.initiated(each.at)
            case "completed":
                session.completed(each.at, each.age)
            case "gave_up":
                session.gave_up()
            case "expired":
                session.expired()
    return session


def defined(happened: list[Happened], now: float) -> PeerState:
    """The state by its definition, from the whole history."""
    kinds = [each.kind for each in happened]
    after_expiry = happened[_after_last(kinds, {"expired"}) :]
    sessions = [each.at - each.age for each in after_expiry if each.kind == "completed"]
    if any(now - began < TIMERS.reject_after for began in sessions):
        return PeerState.ACTIVE
    open_ended = happened[_after_last(kinds, {"completed", "gave_up"}) :]
    sent = [each.at for each in open_ended if each.kind == "initiated"]
    series = [at for i, at in enumerate(sent) if not i or at - sent[i - 1] >= TIMERS.rekey_attempt]
    if series and now - series[-1] < TIMERS.rekey_attempt:
        return PeerState.HANDSHAKING
    if {"initiated", "completed"} & set(kinds):
        return PeerState.STALE
    return PeerState.IDLE


def _after_last(kinds: list[str], wanted: set[str]) -> int:
    return max((i + 1 for i, kind in enumerate(kinds) if kind in wanted), default=0)


@given(HISTORIES, STEPS)
def test_the_state_is_as_defined(happened: list[Happened], later: float) -> None:
    now = (happened[-1].at if happened else 1000.0) + later
    assert session_after(happened).state(now) == defined(happened, now)


@given(HISTORIES, STEPS)
def test_it_says_when_it_will_change(happened: list[Happened], later: float) -> None:
    """Who wakes up then, and at no other time, misses nothing."""
    now = (happened[-1].at if happened else 1000.0) + later
    session = session_after(happened)
    for _ in range(3):
        state, changes_at = session.state(now), session.changes_at(now)
        if changes_at is None:
            assert session.state(now + 1e9) == state
            break
        assert changes_at > now
        assert session.state(now + (changes_at - now) * 0.99) == state
        now = changes_at + 1e-6
        assert session.state(now) != state
    else:
        raise AssertionError("it goes on changing by itself")


@given(st.lists(st.tuples(KINDS, st.floats(0, 1e6), st.floats(0, 200))), st.floats(0, 1e6))
def test_readings_out_of_order_do_no_harm(
    readings: list[tuple[str, float, float]], now: float
) -> None:
    """A reading taken before another may be used after it. A handshake now is a session now."""
    session = session_after([Happened(kind, at, age) for kind, at, age in readings])
    assert session.state(now) in PeerState
    session.completed(now)
    assert session.state(now) is PeerState.ACTIVE


def test_the_usual_life_of_a_peer() -> None:
    session = Session(TIMERS)
    assert session.state(0) is PeerState.IDLE
    session.initiated(0)
    assert session.state(0) is PeerState.HANDSHAKING
    session.completed(1)
    assert session.state(180.9) is PeerState.ACTIVE
    session.initiated(121)  # the next handshake, while the session lasts
    assert session.state(121) is PeerState.ACTIVE
    session.completed(121)
    assert session.state(300.9) is PeerState.ACTIVE
    assert session.state(301) is PeerState.STALE


def test_a_far_end_that_dies_goes_stale_though_the_engine_never_gives_up() -> None:
    """With keepalives each one begins a new attempt (SendHandshakeInitiation, isRetry false)."""
    session = Session(TIMERS)
    session.completed(0)
    for second in range(15, 1000, 5):
        session.initiated(second)
        assert session.state(second) is (PeerState.ACTIVE if second < 180 else PeerState.STALE)


def test_an_attempt_after_one_that_was_given_up_is_a_new_one() -> None:
    session = Session(TIMERS)
    session.initiated(0)
    session.gave_up()
    assert session.state(1) is PeerState.STALE
    assert not session.trying(1)
    session.initiated(2)
    assert session.state(2) is PeerState.HANDSHAKING
    assert session.changes_at(2) == 92


def test_a_suspended_machine_wakes_up_to_stale_peers() -> None:
    session = Session(TIMERS)
    session.completed(10)
    session.initiated(15)
    assert session.state(3600) is PeerState.STALE
    session.initiated(3600)
    assert session.state(3600) is PeerState.HANDSHAKING
