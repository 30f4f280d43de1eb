"""What benchmarks carry their traffic with, and measure it by."""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import floor, predecessor, usage
from bench.contenders import OURS, Contender, together, wg4netnsd
from bench.iperf import Kind, load, transfer
from support.namespaces import Namespace, ping
from support.processes import is_alive
from support.stage import Stage


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predecessor.build(tmp_path_factory.mktemp("predecessor"))


@pytest.fixture(scope="module")
def ours(stage: Stage) -> Iterator[Contender]:
    with together({OURS: wg4netnsd(stage, 1420)}) as contenders:
        yield contenders[OURS]


def test_the_predecessor_s_way_reaches_the_far_end_packet_by_packet(
    stage: Stage, engine: Path, namespace: Callable[[], Namespace]
) -> None:
    inside = namespace()
    with predecessor.tunnel(engine, inside, stage.conf(1)) as pid:
        ping(inside, stage.far.ipv4)
        (link,) = inside.ip("-details", "link", "show", "dev", predecessor.INTERFACE)
        assert link["mtu"] == 1420
        assert link["linkinfo"]["info_data"]["vnet_hdr"] is False
    assert not is_alive(pid)


def test_the_predecessor_s_time_holds_a_wait_for_its_socket(stage: Stage, engine: Path) -> None:
    assert 100 < predecessor.create(engine, stage.conf(1)) < 10_000


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_transfer_costs_both_ends(
    stage: Stage, ours: Contender, protocol: str, direction: str
) -> None:
    found = transfer(ours, stage.far.iperf3_port, Kind(protocol, direction, 2), seconds=1)
    assert found.gbits > 0.01
    assert 0 <= found.lost < 100
    assert found.client_cpu > 0
    assert found.far_cpu > 0
    assert found.machine_cpu > found.client_cpu


def test_a_load_is_there_and_gone(stage: Stage, ours: Contender) -> None:
    kind = Kind("TCP", "up", 1)
    for _ in range(2):  # the second waits until the server is ready again
        before = usage.cpu_seconds(ours.engine)
        with load(ours, stage.far.iperf3_port, kind):
            pass
        assert usage.cpu_seconds(ours.engine) > before


def test_kinds_are_told_in_words() -> None:
    assert str(Kind("TCP", "up", 1)) == "TCP up, 1 stream"
    assert str(Kind("UDP", "down", 8)) == "UDP down, 8 streams"


def test_cpu_time_is_a_process_s_and_the_machine_s() -> None:
    ours, machine, start = (
        usage.cpu_seconds(os.getpid()),
        usage.machine_cpu_seconds(),
        time.process_time(),
    )
    while time.process_time() - start < 0.5:
        pass
    assert usage.cpu_seconds(os.getpid()) - ours == pytest.approx(0.5, abs=0.1)
    assert usage.machine_cpu_seconds() - machine > 0.4


def test_memory_is_seen_to_grow() -> None:
    before = usage.memory(os.getpid())
    held = b"x" * (64 << 20)
    after = usage.memory(os.getpid())
    assert after.rss - before.rss == pytest.approx(64, abs=4)
    assert after.anonymous - before.anonymous == pytest.approx(64, abs=4)
    del held


def test_the_floor_is_told_as_a_rate_and_as_a_cost() -> None:
    rates, costs = floor.run(argparse.Namespace(rounds=1, seconds=1))
    assert rates.rows
    for name, (rate,) in rates.rows.items():
        assert rate * costs.rows[name][0] == pytest.approx(8)  # bits a byte
        assert rate > 1
