"""Many clients at once, and a watch over the engines meanwhile."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from support.bus import Client, DBusError
from support.processes import is_alive

CLOSED = frozenset({"NoSuchTunnel", "UnknownObject"})
"""What those get whose tunnel somebody else has closed."""

T = TypeVar("T")


@dataclass
class Outcomes:
    """How often each thing came out how: Outcomes()["create", "AlreadyExists"]."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)

    def __getitem__(self, key: tuple[str, str]) -> int:
        return self.counts[key]

    def of(self, what: str) -> set[str]:
        return {outcome for done, outcome in self.counts if done == what}

    def attempt(self, what: str, call: Callable[[], object]) -> object:
        """Its result, None where it was an error. The short name of that is the outcome."""
        try:
            result = call()
        except DBusError as error:
            self.counts[what, error.short_name] += 1
            self.messages[error.message] += 1
            return None
        self.counts[what, "ok"] += 1
        return result

    @property
    def counted(self) -> str:
        return ", ".join(f"{what} {how} {n}" for (what, how), n in sorted(self.counts.items()))

    def __str__(self) -> str:
        return "\n".join([self.counted, *self.messages])


def at_once(acts: Iterable[Callable[[], object]], timeout: float = 60) -> None:
    """Begin all of them together, each in a thread; return when the last is done.

    Raises what went wrong in one of them, and fails if one does not end.
    """
    acts = list(acts)
    barrier = threading.Barrier(len(acts))
    problems: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            barrier.wait(10)
            act()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    if problems:
        raise problems[0]
    assert not any(thread.is_alive() for thread in threads), f"not done within {timeout} s"


def by_clients(address: str, acts: Iterable[Callable[[Client], object]]) -> None:
    """All at once, each with a connection of its own."""
    with contextlib.ExitStack() as stack:
        clients = [(act, stack.enter_context(Client(address))) for act in acts]
        at_once(lambda act=act, client=client: act(client) for act, client in clients)


# ---------------------------------------------------------------- engines


def engines_of(parents: Iterable[int]) -> set[int]:
    """The wireguard-go processes that run and are children of one of these.

    By comm and ppid: all else that /proc has of a process which holds keys is closed to us.
    """
    wanted = {str(parent) for parent in parents}
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            head, _, tail = (entry / "stat").read_text().rpartition(") ")
            if head.partition("(")[2] == "wireguard-go" and tail.split()[1] in wanted:
                found.add(int(entry.name))
    return {pid for pid in found if is_alive(pid)}


def interfaces(pid: int) -> set[str]:
    """Those of the namespace that the process is in, but for its loopback."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines} - {"lo"}


@contextlib.contextmanager
def sampled(look: Callable[[], T]) -> Iterator[list[T]]:
    """What `look` returns, again and again in the meantime and once more at the end."""
    seen: list[T] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
        seen.append(look())
