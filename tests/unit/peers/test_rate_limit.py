"""Changes are told at once, then slower, and the last one always."""

from hypothesis import given
from hypothesis import strategies as st

from wg4netnsd.peers.rate_limit import BURST, INTERVAL, RateLimiter, Report

CHANGES = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5)), max_size=60)


def tell(
    changes: list[tuple[int, float]],
) -> tuple[list[tuple[float, Report[int]]], RateLimiter[int]]:
    """What a teller tells that is woken by each change and by due_at()."""
    limiter, now, told = RateLimiter(0), 0.0, []
    for value, wait in [*changes, (changes[-1][0] if changes else 0, 0.0)]:
        limiter.set(value)
        until = now + wait
        while True:
            if due := limiter.due(now):
                told.append((now, due))
            wake_at = limiter.due_at(now)
            if wake_at is None or wake_at > until:
                break
            now = max(wake_at, now + 1e-9)
        now = max(now, until)
    while (wake_at := limiter.due_at(now)) is not None:
        now = max(wake_at, now + 1e-9)
        if due := limiter.due(now):
            told.append((now, due))
    return told, limiter


@given(CHANGES)
def test_the_last_change_is_told_and_each_follows_the_one_before(
    changes: list[tuple[int, float]],
) -> None:
    told, _ = tell(changes)
    known = 0
    for _, each in told:
        assert each.old == known
        assert each.new != known
        known = each.new
    assert known == (changes[-1][0] if changes else 0)


@given(CHANGES)
def test_no_more_than_the_bucket_holds(changes: list[tuple[int, float]]) -> None:
    told, _ = tell(changes)
    times = [at for at, _ in told]
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            span = times[last] - start
            assert last - first + 1 <= BURST + span / INTERVAL + 1e-3


@given(CHANGES)
def test_what_is_missed_is_counted(changes: list[tuple[int, float]]) -> None:
    told, _ = tell(changes)
    edges, value = 0, 0
    for new, _ in changes:
        edges += new != value
        value = new
    counted = sum(each.missed + 1 for _, each in told)
    # A value that is back before it could be told leaves its changes to the next that is.
    assert counted <= edges
    assert edges - counted == 0 or changes[-1][0] == (told[-1][1].new if told else 0)


def test_the_first_ones_are_told_at_once() -> None:
    limiter = RateLimiter(0)
    for value in range(1, BURST + 1):
        limiter.set(value)
        assert limiter.due(5.0) == (value, value - 1, 0)
    for value in range(BURST + 1, BURST + 4):
        limiter.set(value)
        assert limiter.due(5.0) is None
    assert limiter.due_at(5.0) == 5.0 + INTERVAL
    assert limiter.due(5.0 + INTERVAL) == (BURST + 3, BURST, 2)
    assert limiter.due_at(7.0) is None


def test_a_long_silence_earns_no_more_than_a_full_bucket() -> None:
    limiter = RateLimiter(0)
    limiter.set(1)
    assert limiter.due(0.0)
    for value in range(2, BURST + 2):
        limiter.set(value)
        assert limiter.due(1000.0)
    limiter.set(BURST + 2)
    assert limiter.due(1000.0) is None
    assert limiter.due_at(1000.0) == 1000.0 + INTERVAL


def test_there_and_back_again_is_nothing_to_tell() -> None:
    limiter = RateLimiter(0)
    limiter.set(1)
    limiter.set(0)
    assert limiter.due(0.0) is None
    assert limiter.due_at(0.0) is None
    limiter.set(2)
    assert limiter.due(0.0) == (2, 0, 2)
