"""TCP through two hops, beside one hop and beside two stock engines that root has nested.

    wg4netnsd, 1 hop     client ── wg0 ─► far end
    wg4netnsd, 2 hops    client ── wg0 ─► a namespace of ours ── wg0 ─► far end
    stock, 2 hops        the host ── stock2 ─► root's namespace `hop` ── stock1 ─► far end

The far end is the same for all. It decrypts both hops' packets, which costs it as much as the
client.
"""

import argparse
import contextlib
from collections.abc import Iterator
from functools import partial

from bench.contenders import Contender, on_host, roots_engine, together
from bench.iperf import Kind, transfer
from bench.record import Table
from bench.tunnels import daemon_with
from bench.turns import in_turns
from support.namespaces import Namespace
from support.stage import Stage, read
from support.transits import conf_through

ONE, TWO, STOCK = "wg4netnsd, 1 hop", "wg4netnsd, 2 hops", "stock, as root, 2 hops"

STOCK_SERVER = "198.51.100.2"
"""The far end's address that leads through the stock hops."""


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage, "run it by scripts/bench"
    tables, ratios = [], {}
    ways = {ONE: hops(stage, 1), TWO: hops(stage, 2), STOCK: stock_hops()}
    with together(ways) as contenders:
        for direction in arguments.directions:
            for streams in arguments.streams:
                kind = Kind("TCP", direction, streams)
                found = in_turns(
                    {
                        name: partial(
                            transfer, each, stage.far.iperf3_port, kind, arguments.seconds
                        )
                        for name, each in contenders.items()
                    },
                    arguments.rounds,
                )
                rates = {name: [each.gbits for each in rows] for name, rows in found.items()}
                costs = {name: [each.machine_cpu for each in rows] for name, rows in found.items()}
                tables += [
                    Table(str(kind), "Gbit/s", rates, STOCK),
                    Table(f"{kind}: whole machine", "CPU-s/GB", costs, STOCK),
                ]
                ratios[f"{kind}: ours / stock"] = [
                    ours / stocks for ours, stocks in zip(rates[TWO], rates[STOCK], strict=True)
                ]
    return [*tables, Table("Two hops, round by round", "ratio", ratios)]


@contextlib.contextmanager
def hops(stage: Stage, count: int) -> Iterator[Contender]:
    with Namespace() as outer, Namespace() as inner, daemon_with({}) as (daemon, _):
        path = daemon.client.create(outer, stage.conf(count), name="outer")
        if count == 1:
            engine = int(daemon.client.get(path, "EnginePID"))
            yield Contender(stage.far.ipv4, outer.command, engine, roots_engine("far-v4"))
            return
        path = daemon.client.create(inner, conf_through(stage, 3), transit_tunnel="outer")
        engine = int(daemon.client.get(path, "EnginePID"))
        yield Contender(stage.far.ipv4, inner.command, engine, roots_engine("far-v4"))


@contextlib.contextmanager
def stock_hops() -> Iterator[Contender]:
    engine = roots_engine("stock2")
    yield Contender(STOCK_SERVER, on_host, engine, roots_engine("far-v4"))
