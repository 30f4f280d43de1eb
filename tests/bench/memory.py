"""Memory of the process that carries the packets: idle, the maximum under load, after a burst.

A burst is TCP, 8 streams, up and then down. wg4netnsd's engine, slirp4netns and pasta are new in
each round. The stock engine is the stage's, so it is new only in the first round.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import predecessor
from bench.contenders import Contender, like_for_like, together
from bench.iperf import Kind, load
from bench.record import Table
from bench.usage import Memory, memory
from support.stage import read

STREAMS = 8
SAMPLES = 0.02
"""Seconds between two samples of a busy process."""


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage, "run it by scripts/bench"
    after = f"{arguments.pause:g} s after a burst"
    found: dict[str, dict[str, list[Memory]]] = {"idle": {}, "at most under load": {}, after: {}}
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        engine = predecessor.build(Path(directory))
        for _ in range(arguments.rounds):
            with together(like_for_like(stage, engine)) as contenders:
                ends = {}
                for name, contender in contenders.items():
                    found["idle"].setdefault(name, []).append(memory(contender.engine))
                    most = _burst(contender, stage.far.iperf3_port, arguments.seconds)
                    found["at most under load"].setdefault(name, []).append(most)
                    ends[name] = time.monotonic()
                for name, contender in contenders.items():
                    time.sleep(max(0, ends[name] + arguments.pause - time.monotonic()))
                    found[after].setdefault(name, []).append(memory(contender.engine))
    return [
        *(
            Table(f"{figure} {when}", "MiB", _each(found[when], attribute))
            for figure, attribute in (("RSS", "rss"), ("Anonymous memory", "anonymous"))
            for when in found
        ),
        Table(f"RSS {after} / idle", "ratio", _ratios(found[after], found["idle"])),
    ]


def _burst(contender: Contender, port: int, seconds: float) -> Memory:
    """Return the maximum of each figure by itself."""
    seen = [
        one
        for direction in ("up", "down")
        for one in _samples(contender, port, Kind("TCP", direction, STREAMS), seconds)
    ]
    return Memory(max(one.rss for one in seen), max(one.anonymous for one in seen))


def _samples(contender: Contender, port: int, kind: Kind, seconds: float) -> Iterator[Memory]:
    with load(contender, port, kind):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield memory(contender.engine)
            time.sleep(SAMPLES)
    yield memory(contender.engine)


def _each(rows: dict[str, list[Memory]], figure: str) -> dict[str, list[float]]:
    return {name: [getattr(one, figure) for one in each] for name, each in rows.items()}


def _ratios(rows: dict[str, list[Memory]], to: dict[str, list[Memory]]) -> dict[str, list[float]]:
    return {
        name: [one.rss / other.rss for one, other in zip(each, to[name], strict=True)]
        for name, each in rows.items()
    }
