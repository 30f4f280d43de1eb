"""A steady TCP stream and pings through a tunnel, and when each of them arrived."""

import itertools
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from support import blocks
from support.blocks import RECORD, What
from support.namespaces import Namespace
from support.processes import wait_for


class Stream:
    """From inside a namespace to the far end and back, until it is told to finish."""

    def __init__(self, inside: Namespace, address: str, port: int, journal: Path) -> None:
        self._journal = journal
        self._journal.touch()
        program = [sys.executable, blocks.__file__, address, str(port), str(journal)]
        self.process = inside.popen(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def wait_for_progress(self) -> None:
        """Return when bytes have arrived that had not at the call."""
        before = self._journal.stat().st_size // RECORD.size * RECORD.size
        wait_for(lambda: self._arrived_after(before), "the stream goes on", 30)

    def _arrived_after(self, offset: int) -> bool:
        assert self.process.poll() is None, "the stream has ended"
        return any(what == What.ARRIVED for what, _, _ in self._records(offset))

    def finish(self) -> int:
        """End it; how many bytes have come back. Fails unless each came back once and in order."""
        output, _ = self.process.communicate("", timeout=2 * blocks.CLOSE_TIME)
        assert self.process.returncode == 0 and output.startswith("whole "), "see its stderr"
        return int(output.split()[1])

    def times(self) -> "Times":
        """Of all that has happened so far."""
        return Times(self._records(0))

    def _records(self, offset: int) -> Iterator[tuple[int, int, int]]:
        with self._journal.open("rb") as file:
            file.seek(offset)
            content = file.read()
        whole = len(content) // RECORD.size * RECORD.size
        return RECORD.iter_unpack(content[:whole])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


class Times:
    """When what happened, by CLOCK_MONOTONIC in ns; windows of it are in seconds of that clock."""

    def __init__(self, records: Iterator[tuple[int, int, int]]) -> None:
        by_kind: dict[int, list[tuple[int, int]]] = {what: [] for what in What}
        for what, when, amount in records:
            by_kind[what].append((when, amount))
        self.arrivals = [when for when, _ in by_kind[What.ARRIVED]]
        self.answers = [when for when, _ in by_kind[What.ANSWERED]]
        self._pings = by_kind[What.PINGED]
        self._answered = {number for _, number in by_kind[What.ANSWERED]}
        self._retransmissions = by_kind[What.RETRANSMITTED]

    def pings(self, start: float, end: float) -> int:
        """How many were sent in that window."""
        return sum(start <= when / 1e9 < end for when, _ in self._pings)

    def lost(self, start: float, end: float) -> int:
        """How many of those never were answered."""
        return sum(
            start <= when / 1e9 < end and number not in self._answered
            for when, number in self._pings
        )

    def retransmissions(self, start: float, end: float) -> int:
        counts = [0, *(count for when, count in self._retransmissions if when / 1e9 < end)]
        before = [0, *(count for when, count in self._retransmissions if when / 1e9 < start)]
        return counts[-1] - before[-1]


def assert_pings_arrived(times: Times, start: float, end: float) -> None:
    """All of them, but one in 200: a machine that is short of time loses one now and then, though
    nobody attacks it."""
    sent = times.pings(start, end)
    assert times.lost(start, end) <= sent / 200, sent


def gaps(times: Sequence[int], start: float, end: float) -> list[float]:
    """Seconds from each of the times to the next, as far as they touch the window."""
    first = max(0, bisect_right(times, start * 1e9) - 1)
    last = bisect_left(times, end * 1e9)
    return [(after - before) / 1e9 for before, after in itertools.pairwise(times[first : last + 1])]
