"""Run the suite in several worlds at a time:  suite.py WORLDS COMMAND…

COMMAND enters a world and runs pytest in it: tests/stage/enter with its arguments. In a word that
ends in -WORLD, the world's number replaces WORLD.

The worlds share a queue of test modules, a pipe that holds the numbers 0, 1, 2 …: all worlds
collect the same modules in the same order, and the world that reads a number runs that module. Each
reports its tests through its own pipe (tests/support/shared.py is the other end). The exit status
is 0 if every world finished and every test passed or was skipped. Otherwise, the worlds' output is
kept.
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

MOST_MODULES = 4096  # four bytes each: a quarter of a pipe's 64 KiB


class World:
    """A world and its reports."""

    def __init__(self, number: int, command: list[str], queue: int, log: Path) -> None:
        self.number = number
        self.log = log
        self.done = False
        """Whether its pytest has finished."""
        self._rest = b""
        self.results, theirs = os.pipe()
        fds = ["--queue", str(queue), "--results", str(theirs)]
        command = [re.sub("-WORLD$", f"-{number}", word) for word in command]
        with log.open("wb") as output:
            # --pdeathsig: it ends with us, however we end. A process group of its own: a signal to
            # one world must not reach another.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command, *fds],
                pass_fds=(queue, theirs),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        os.close(theirs)

    def read(self) -> Iterator[dict[str, str]]:
        """Yield the reports that have arrived. Raises EOFError when no writer is left."""
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
        """Record a world's end. A world that has not reported that it is done has failed."""
        status = world.process.wait()
        if world.done and status in (0, 1):  # 1 is pytest's status if tests failed
            return
        self.count["failed"] += 1
        tail = "\n".join(world.log.read_text(errors="replace").splitlines()[-40:])
        self.fail(f"world {world.number} ended with status {status}", tail)

    def fail(self, what: str, text: str) -> None:
        """Print a failure at once, for those who do not wait; print() names it again."""
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
    """Return the read end; each read of four bytes takes a number that no other world gets."""
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
        print(f"The worlds' output is in {logs}")
    summary.print()
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
