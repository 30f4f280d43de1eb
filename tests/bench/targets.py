"""The targets, as ratios and limits, and how to compute them from the recordings.

A target that covers several tables or rows is met if each of them meets it.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.figures import percentile
from bench.record import Recording, Table

Recordings = Mapping[str, Recording]
"""Recordings by their benchmarks' names."""


@dataclass(frozen=True)
class Target:
    figure: str
    limit: float
    measure: Callable[[Recordings], Sequence[float]]
    """Raises LookupError if a recording that it needs is missing."""
    unit: str = ""
    at_least: bool = False
    remark: str = ""
    """Why the target is missed, if it is."""

    def met(self, values: Sequence[float]) -> bool:
        return min(values) >= self.limit if self.at_least else max(values) <= self.limit


def table(recordings: Recordings, what: str, title: str) -> Table:
    """Raises LookupError."""
    for each in recordings[what].tables:
        if each.title == title:
            return each
    raise LookupError(title)


def _ratio(what: str, title: str, row: str, other: str) -> Callable[[Recordings], list[float]]:
    """The ratio of two medians."""

    def measure(recordings: Recordings) -> list[float]:
        rows = table(recordings, what, title).rows
        return [statistics.median(rows[row]) / statistics.median(rows[other])]

    return measure


def _medians(
    what: str, title: str, start: str, end: str = ""
) -> Callable[[Recordings], list[float]]:
    """The medians of the rows whose names have this start and end."""

    def measure(recordings: Recordings) -> list[float]:
        rows = table(recordings, what, title).rows
        found = [
            statistics.median(values)
            for name, values in rows.items()
            if name.startswith(start) and name.endswith(end)
        ]
        if not found:
            raise LookupError(title)
        return found

    return measure


def _growth(recordings: Recordings) -> list[float]:
    most = table(recordings, "growth", "CreateTunnel, the n-th").rows["256"]
    title = "CreateTunnel, the first of another daemon, in turns with the n-th"
    first = table(recordings, "growth", title).rows["256"]
    return [percentile(most, 95) / percentile(first, 95)]


def _memory_each(recordings: Recordings) -> list[float]:
    rows = table(recordings, "growth", "Memory of the daemon alone").rows
    return [(rows["256"][0] - rows["1"][0]) * 1048.576 / 255]  # MiB to KB


def _p99(what: str, title: str, row: str) -> Callable[[Recordings], list[float]]:
    return lambda recordings: [percentile(table(recordings, what, title).rows[row], 99)]


def _worst(what: str, title: str, row: str) -> Callable[[Recordings], list[float]]:
    return lambda recordings: [max(table(recordings, what, title).rows[row])]


CREATE = "From the call to a configured interface, warm"
THROUGHPUT = "Throughput, MTU 1420, round by round"
COST = "CPU-s/GB at the client end, MTU 1420, round by round"

TARGETS = (
    Target(
        "create (`persistent`), warm p50 / slirp4netns ready",
        1.0,
        _ratio("create", CREATE, "wg4netnsd, persistent", "slirp4netns"),
        remark="Python in three processes, and a bus; see *Where the time goes*",
    ),
    Target(
        "create (`namespace`: the link is moved), warm p50 / slirp4netns ready",
        3.0,
        _ratio("create", CREATE, "wg4netnsd, namespace", "slirp4netns"),
        remark="`rcu_barrier()` in the kernel takes 20 to 28 ms of the move; see there",
    ),
    Target("create p95, the 256th tunnel / the first", 1.5, _growth),
    Target(
        "TCP throughput / stock wireguard-go as root",
        1.05,
        _medians("throughput", THROUGHPUT, "TCP", "/ stock, as root"),
        at_least=True,
    ),
    Target(
        "TCP throughput / predecessor's way, each at both ends",
        4.5,
        _medians("pairs", "Between two namespaces, round by round", "TCP"),
        at_least=True,
        remark="the predecessor runs with today's engine and Go here; its own were not available",
    ),
    Target(
        "TCP throughput / predecessor's way, stock at the far end",
        4.5,
        _medians("throughput", THROUGHPUT, "TCP", "/ predecessor's way"),
        at_least=True,
        remark="down, stock's offloads send it packets in trains, and its engine is today's",
    ),
    Target(
        "CPU-s per GB of TCP, client end / slirp4netns (which does not encrypt)",
        1.5,
        _medians("throughput", COST, "TCP"),
    ),
    Target(
        "engine RSS 60 s after a burst / idle",
        2,
        _medians("memory", "RSS 60 s after a burst / idle", "wg4netnsd"),
    ),
    Target("daemon: (memory at 256 tunnels − at 1) / 255", 60, _memory_each, "KB"),
    Target(
        "idle wake-ups, daemon + 64 engines",
        2,
        _worst("idle", "Daemon and engines", "64"),
        "per second",
    ),
    *(
        Target(
            f"handshake → signal, p99, {how}",
            5,
            _p99("signals", f"From a handshake to its signal, {how}", "wg4netnsd"),
            "ms",
            remark="the handshakes alone keep two cores busy for longer",
        )
        for how in ("one at a time", "25 at once")
    ),
    Target(
        "adopt 64 tunnels after a kill of the daemon: until READY, the slowest",
        1000,
        _worst("adopt", "From the new process's start to READY", "64"),
        "ms",
    ),
    Target(
        "adopt 64 tunnels after a kill of the daemon: packets lost",
        0,
        _worst("adopt", "Pings lost, of 400 from the kill on, one each 10 ms", "64"),
    ),
)
