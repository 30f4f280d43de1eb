"""What benchmarks stand beside the daemon, and what they measure it with."""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import iperf, predecessor
from bench.contenders import Contender, together, wg4netnsd
from bench.usage import cpu_seconds, machine_cpu_seconds, memory
from support.namespaces import Namespace, ping
from support.processes import is_alive, wait_for
from support.stage import Stage
from wg4netnsd.tun import IFREQ_SIZE, TUNGETIFF

IFF_VNET_HDR = 0x4000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predecessor.build(tmp_path_factory.mktemp("predecessor"))


def test_the_predecessor_s_way_reaches_the_far_end(
    stage: Stage, engine: Path, namespace: Namespace
) -> None:
    with predecessor.tunnel(engine, namespace, stage.conf(0)) as pid:
        ping(namespace, stage.far.ipv4)
        assert namespace.links()[predecessor.INTERFACE]["mtu"] == 1420
    assert not is_alive(pid)


def test_the_predecessor_s_tunnel_takes_milliseconds(stage: Stage, engine: Path) -> None:
    assert 10 < predecessor.create(engine, stage.conf(0)) < 10_000
