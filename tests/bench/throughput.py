"""TCP and UDP through each contender to the far end, in turns, and the cost of a GB.

A GB is 1e9 bytes that the application has received. "client end" is the contender's own process,
"far end" the stage's stock engine. The kernel charges softirqs to no process, so there is "whole
machine", too.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import predecessor
from bench.contenders import (
    OURS,
    PREDECESSOR,
    SLIRP,
    STOCK,
    Way,
    large,
    like_for_like,
    slirp4netns,
    together,
)
from bench.iperf import Kind, Transfer, transfer
from bench.record import Table
from bench.turns import in_turns
from support.stage import Stage, read

Transfers = dict[Kind, dict[str, list[Transfer]]]


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage, "run it by scripts/bench"
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        ways = like_for_like(stage, predecessor.build(Path(directory)))
        ways[f"{SLIRP}, MTU 1500"] = slirp4netns(stage, 1500)  # its default
        same = _measure(stage, ways, arguments.protocols, arguments)
    only_tcp = [each for each in arguments.protocols if each == "TCP"]  # a datagram stays as it is
    larger = _measure(stage, large(stage), only_tcp, arguments)
    return [
        *(table for kind in same for table in _tables(kind, "MTU 1420", same[kind])),
        *(table for kind in larger for table in _tables(kind, "larger MTU", larger[kind])),
        *_ratios(same),
    ]


def _measure(
    stage: Stage, ways: Mapping[str, Way], protocols: Sequence[str], arguments: argparse.Namespace
) -> Transfers:
    port = stage.far.iperf3_port
    kinds = [
        Kind(protocol, direction, streams)
        for protocol in protocols
        for direction in arguments.directions
        for streams in arguments.streams
    ]
    with together(ways) as contenders:
        return {
            kind: in_turns(
                {
                    name: partial(transfer, contender, port, kind, arguments.seconds)
                    for name, contender in contenders.items()
                },
                arguments.rounds,
            )
            for kind in kinds
        }


def _tables(kind: Kind, mtu: str, rows: Mapping[str, Sequence[Transfer]]) -> list[Table]:
    what = f"{kind}, {mtu}"
    encrypting = {name: each for name, each in rows.items() if each[0].far_cpu is not None}
    stock = next(name for name in rows if name.startswith(STOCK))
    slirp = next(name for name in rows if name.startswith(SLIRP))
    tables = [Table(what, "Gbit/s", _each(rows, "gbits"), stock)]
    if kind.protocol == "UDP":
        tables.append(Table(f"{what}: lost", "%", _each(rows, "lost")))
    return [
        *tables,
        Table(f"{what}: client end", "CPU-s/GB", _each(rows, "client_cpu"), slirp),
        Table(f"{what}: far end", "CPU-s/GB", _each(encrypting, "far_cpu"), stock),
        Table(f"{what}: whole machine", "CPU-s/GB", _each(rows, "machine_cpu"), stock),
    ]


def _each(rows: Mapping[str, Sequence[Transfer]], figure: str) -> dict[str, list[float]]:
    return {name: [getattr(one, figure) for one in each] for name, each in rows.items()}


def _ratios(same: Transfers) -> list[Table]:
    """Return the ratios for the targets: wg4netnsd to one other contender, round by round."""
    rates = {
        f"{kind}: {OURS} / {other}": [
            our.gbits / their.gbits for our, their in zip(rows[OURS], rows[other], strict=True)
        ]
        for other in (STOCK, PREDECESSOR)
        for kind, rows in same.items()
    }
    costs = {
        f"{kind}: {OURS} / {SLIRP}": [
            our.client_cpu / their.client_cpu
            for our, their in zip(rows[OURS], rows[SLIRP], strict=True)
        ]
        for kind, rows in same.items()
    }
    return [
        Table("Throughput, MTU 1420, round by round", "ratio", rates),
        Table("CPU-s/GB at the client end, MTU 1420, round by round", "ratio", costs),
    ]
