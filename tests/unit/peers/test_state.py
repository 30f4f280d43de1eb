"""A peer's state: for any order of events and clock readings, it is what its definition says."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from wg4netnsd.engine.events import Timers
from wg4netnsd.peers.state import PeerState, StateMachine

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


def machine_after(happened: list[Happened]) -> StateMachine:
    machine = StateMachine(TIMERS)
    for each in happened:
        match each.kind:
            case "initiated":
                machine.initiated(each.at)
            case "completed":
                machine.completed(each.at, each.age)
            case "gave_up":
                machine.gave_up()
            case "expired":
                machine.expired()
    return machine


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
    assert machine_after(happened).state(now) == defined(happened, now)


@given(HISTORIES, STEPS)
def test_it_says_when_it_will_change(happened: list[Happened], later: float) -> None:
    """Who wakes up then, and at no other time, misses nothing."""
    now = (happened[-1].at if happened else 1000.0) + later
    machine = machine_after(happened)
    for _ in range(3):
        state, changes_at = machine.state(now), machine.changes_at(now)
        if changes_at is None:
            assert machine.state(now + 1e9) == state
            break
        assert changes_at > now
        assert machine.state(now + (changes_at - now) * 0.99) == state
        now = changes_at + 1e-6
        assert machine.state(now) != state
    else:
        raise AssertionError("it goes on changing by itself")


@given(st.lists(st.tuples(KINDS, st.floats(0, 1e6), st.floats(0, 200))), st.floats(0, 1e6))
def test_readings_out_of_order_do_no_harm(
    readings: list[tuple[str, float, float]], now: float
) -> None:
    """A reading taken before another may be used after it. A handshake now is a session now."""
    machine = machine_after([Happened(kind, at, age) for kind, at, age in readings])
    assert machine.state(now) in PeerState
    machine.completed(now)
    assert machine.state(now) is PeerState.ACTIVE


def test_the_usual_life_of_a_peer() -> None:
    machine = StateMachine(TIMERS)
    assert machine.state(0) is PeerState.IDLE
    machine.initiated(0)
    assert machine.state(0) is PeerState.HANDSHAKING
    machine.completed(1)
    assert machine.state(180.9) is PeerState.ACTIVE
    machine.initiated(121)  # the next handshake, while the session lasts
    assert machine.state(121) is PeerState.ACTIVE
    machine.completed(121)
    assert machine.state(300.9) is PeerState.ACTIVE
    assert machine.state(301) is PeerState.STALE


def test_a_far_end_that_dies_goes_stale_though_the_engine_never_gives_up() -> None:
    """With keepalives each one begins a new attempt (SendHandshakeInitiation, isRetry false)."""
    machine = StateMachine(TIMERS)
    machine.completed(0)
    for second in range(15, 1000, 5):
        machine.initiated(second)
        assert machine.state(second) is (PeerState.ACTIVE if second < 180 else PeerState.STALE)


def test_an_attempt_after_one_that_was_given_up_is_a_new_one() -> None:
    machine = StateMachine(TIMERS)
    machine.initiated(0)
    machine.gave_up()
    assert machine.state(1) is PeerState.STALE
    assert not machine.is_trying(1)
    machine.initiated(2)
    assert machine.state(2) is PeerState.HANDSHAKING
    assert machine.changes_at(2) == 92


def test_a_suspended_machine_wakes_up_to_stale_peers() -> None:
    machine = StateMachine(TIMERS)
    machine.completed(10)
    machine.initiated(15)
    assert machine.state(3600) is PeerState.STALE
    machine.initiated(3600)
    assert machine.state(3600) is PeerState.HANDSHAKING
