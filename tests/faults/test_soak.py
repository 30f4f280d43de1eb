"""Everything that may happen to tunnels, at random and for a while; then all is as it was.

scripts/test tests/faults/test_soak.py --soak=600 --soak-seed=12345
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from random import SystemRandom

import pytest

from support.bus import Client
from support.depth import depth
from support.installed import crash
from support.journal import Journal
from support.manager import UNIT, UserManager
from support.namespaces import Namespace, ping
from support.processes import wait_for
from support.rules import MatchRules
from support.soak import Holdings, Soak, assert_settles, holdings, memory_kib, settled
from support.stage import Stage
from support.transfer import Transfer

pytestmark = pytest.mark.long

THREADS, PLACES = 4, 8
WARM_UP = 4.0  # seconds, at most
PARTS = 6
GROWTH_KIB = 4096
"""Of the daemon's memory, from its least in the first parts to its least in the last. It comes and
goes by 4 MiB, as cyclic garbage is collected when there is a quarter more of it. A kilobyte that
each of a minute's two thousand operations left would show in two minutes."""

DEFECTS = ("internal error", "Traceback", "was never awaited", "could not be logged")


@pytest.fixture
def soak(unlimited: UserManager, stage: Stage, request: pytest.FixtureRequest) -> Iterator[Soak]:
    seed = request.config.getoption("--soak-seed") or SystemRandom().randrange(10**6)
    made = Soak(unlimited, stage, PLACES, seed)
    yield made
    made.close()


def all_more(look: Callable[[], Holdings], than: Holdings) -> bool:
    return all(now > then for now, then in zip(look(), than, strict=True))


@pytest.mark.timeout(0)  # it takes as long as one likes; each step of it has its time
def test_soak(
    soak: Soak,
    unlimited: UserManager,
    stage: Stage,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds, journal = request.config.getoption("--soak") or depth(30, 600), Journal()
    with capsys.disabled():
        print(f"\n--soak={seconds:g} --soak-seed={soak.seed}")
    with (
        closing(MatchRules(unlimited.address)) as rules,
        Client(unlimited.address) as client,
        Namespace() as inside,
    ):
        look = partial(holdings, unlimited, client, rules)
        kept = client.create(inside, stage.conf(PLACES), name="kept", lifetime="persistent")
        ping(inside, stage.far.ipv4)
        with Transfer(inside, stage.far.ipv4, stage.far.echo_port) as transfer:
            # With one end of the daemon after another: its memory begins anew each time.
            soak.run(min(WARM_UP, seconds / 4), THREADS, kill_daemon=False)
            crash(unlimited)
            before = settled(look)
            with Client(unlimited.address) as other:
                other.create(soak.places[0].inside, stage.conf(0), lifetime="client")
                wait_for(partial(all_more, look, before), "each count tells of it")
            assert_settles(unlimited, look, before)
            soak.run(seconds / 2, THREADS, kill_daemon=True)
            crash(unlimited)
            assert_settles(unlimited, look, before)
            # And without.
            soak.run(min(WARM_UP, seconds / 4), THREADS, kill_daemon=False)
            memory = []
            for _ in range(PARTS):
                soak.run(seconds / 2 / PARTS, THREADS, kill_daemon=False)
                memory.append(memory_kib(unlimited))
            assert_settles(unlimited, look, before)
            transfer.finish()
        client.close_tunnel(kept)
    with capsys.disabled():
        print(f"{soak.outcomes.counted}; {before}; memory {memory} KiB")
    told = journal.messages(f"--user-unit={UNIT}")
    assert told
    assert [line for line in told if any(defect in line for defect in DEFECTS)] == []
    soak.assert_documented()
    assert min(memory[PARTS // 2 :]) - min(memory[: PARTS // 2]) < GROWTH_KIB
