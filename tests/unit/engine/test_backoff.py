"""When a crashing engine is restarted, and when given up."""

from itertools import pairwise

from wg4netnsd.engine.backoff import HEALTHY_TIME, MAX_CRASHES, MAX_DELAY, Backoff


def test_a_crash_loop_slows_down_and_ends() -> None:
    backoff = Backoff()
    delays = [backoff.crash_delay(0) for _ in range(MAX_CRASHES)]
    assert delays[0] == 0
    assert all(
        late is not None and soon is not None and soon < late <= MAX_DELAY
        for soon, late in pairwise(delays)
    )
    assert backoff.crash_delay(0) is None
    assert backoff.crash_delay(0) is None


def test_an_engine_that_ran_well_starts_at_once() -> None:
    backoff = Backoff()
    for _ in range(3 * MAX_CRASHES):
        assert backoff.crash_delay(HEALTHY_TIME) == 0
    assert backoff.crash_delay(HEALTHY_TIME - 1) != 0


def test_given_up_until_reset() -> None:
    backoff = Backoff(crashes=MAX_CRASHES)
    assert backoff.crash_delay(0) is None
    backoff.reset()
    assert backoff.crash_delay(0) == 0
