"""Runs the suite in several worlds at a time:  suite.py WORLDS COMMAND…

COMMAND enters a world and runs pytest in it: tests/stage/enter with its arguments. In a word that
ends in -WORLD that becomes the world's number.

The worlds share a queue of test modules, a pipe that holds the numbers 0, 1, 2 …: all of them
collect the same modules in the same order, and the one that reads a number runs that module. Each
reports its tests through a pipe of its own (tests/support/shared.py is the other end). Ends with 0
if every world came to its end, and every test passed or was skipped; else what the worlds printed
is kept.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MOST_MODULES = 4096  # numbers of four bytes: a quarter of a pipe's 64 KiB


class World:
    """One of the worlds, and what it has reported."""

    def __init__(self, number: int, command: list[str], queue: int, log: Path) -> None:
        self.number = number
        self.log = log
        self.done = False
        """Whether its pytest came to its end."""
        self._rest = b""
        self.results, theirs = os.pipe()
        fds = ["--queue", str(queue), "--results", str(theirs)]
        command = [re.sub("-WORLD$", f"-{number}", word) for word in command]
        with log.open("wb") as output:
            # --pdeathsig: it ends with us, however we end.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command, *fds],
                pass_fds=(queue, theirs),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # what is sent to one world's is for no other
            )
        os.close(theirs)

    def read(self) -> Iterator[dict[str, str]]:
        """The reports that are there. Raises EOFError when nobody in it is left to write any."""
        data = os.read(self.results, 1 << 16)
        if not data:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        yield from map(json.loads, lines)


class Summary:
    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.failures: list[str] = []
        self.skips: Counter[str] = Counter()
        self.started = time.monotonic()

    def add(self, world: World, report: dict[str, str]) -> None:
        match report:
            case {"done": _}:
                world.done = True
            case {"module": module, "told": told}:
                print(f"{self.elapsed()} world {world.number}: {module}: {told}", flush=True)
            case {"test": test, "outcome": outcome, "text": text}:
                self.count[outcome] += 1
                if outcome == "failed":
                    self.fail(f"{test}, world {world.number}", text)
                elif outcome == "skipped":
                    self.skips[text] += 1

    def ended(self, world: World) -> None:
        """A world that has not said that it is done counts as a failure."""
        status = world.process.wait()
        if world.done and status in (0, 1):  # pytest's own for tests that failed
            return
        self.count["failed"] += 1
        tail = "\n".join(world.log.read_text(errors="replace").splitlines()[-40:])
        self.fail(f"world {world.number} ended with status {status}", tail)

    def fail(self, what: str, text: str) -> None:
        """Told at once, as whoever waits may not wait for the end, and named once more there."""
        print(f"\n{self.elapsed()} FAILED {what}\n{text}\n", flush=True)
        self.failures.append(what)

    def elapsed(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02}"

    def print(self) -> None:
        for failure in self.failures:
            print(f"FAILED {failure}")
        for reason, times in self.skips.items():
            print(f"skipped {times}: {reason}")
        print(f"in {self.elapsed()} minutes")
        passed, failed, skipped = (self.count[each] for each in ("passed", "failed", "skipped"))
        print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)


def queue_of_numbers() -> int:
    """The end to read from; each read of four bytes takes a number that nobody else gets."""
    reader, writer = os.pipe()
    os.write(writer, b"".join(struct.pack("=I", number) for number in range(MOST_MODULES)))
    os.close(writer)
    return reader


def follow(worlds: list[World], summary: Summary) -> None:
    with selectors.DefaultSelector() as selector:
        for world in worlds:
            selector.register(world.results, selectors.EVENT_READ, world)
        while selector.get_map():
            for key, _ in selector.select():
                try:
                    for report in key.data.read():
                        summary.add(key.data, report)
                except EOFError:
                    selector.unregister(key.fd)
                    summary.ended(key.data)


def main() -> int:
    many, *command = sys.argv[1:]
    logs = Path(tempfile.mkdtemp(prefix="wg4netnsd-test-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    queue, summary = queue_of_numbers(), Summary()
    worlds: list[World] = []
    try:
        for number in range(1, int(many) + 1):
            worlds.append(World(number, command, queue, logs / f"world-{number}.log"))
        follow(worlds, summary)
    finally:
        for world in worlds:
            world.process.terminate()
        for world in worlds:
            with contextlib.suppress(KeyboardInterrupt):
                world.process.wait()
    passed = summary.count["passed"] and not summary.count["failed"]
    if passed:
        shutil.rmtree(logs)
    else:
        print(f"What the worlds printed is in {logs}")
    summary.print()
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
