"""Processes as /proc shows them, and waiting for a condition."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for what is sure to come, on a machine that has other things to do. A limit that is
part of what a test says is another: it ends before what would be if the product were at fault."""


def wait_for(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """The condition's first true value; fails, naming what was awaited, if none comes in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s (last seen: {value!r})")
        time.sleep(0.01)
    return value


def children(pid: int) -> set[int]:
    """The processes whose parent is pid, zombies included."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            if not Path(f"/proc/{pid}").exists():
                raise
            continue  # a thread that has ended since it was listed; its children are another's
    return found


def only_child(pid: int) -> int:
    """The one child of pid, once there is one alone: another may still be ending."""
    (child,) = wait_for(
        lambda: found if len(found := children(pid)) == 1 else None, "one child is left"
    )
    return child


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    new = {pid}
    while new:
        new = set().union(*(children_or_none(each) for each in new)) - found
        found |= new
    return found


def children_or_none(pid: int) -> set[int]:
    """The same; none of a process that has ended."""
    try:
        return children(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return set()


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return bool(program(pid))


def program(pid: int) -> str:
    """The name of what it runs, at most 15 characters of it; none if it has ended.

    Not by its `exe` link: that is not to be read of a process that is not dumpable.
    """
    name, state = _status(pid)
    return "" if state in "ZX" else name


def state(pid: int) -> str:
    """Its letter of proc(5): `S` sleeps, `T` was stopped; `X` if it has ended."""
    return _status(pid)[1]


def _status(pid: int) -> tuple[str, str]:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", "X"
    head, _, tail = status.rpartition(")")
    return head.partition("(")[2], tail.split()[0]


def status(process: Path) -> dict[str, str]:
    """The fields of its `status` (proc(5)), or of one of its threads': /proc/PID/task/TID."""
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def resident(pid: int) -> int:
    """Bytes of memory that it has, VmRSS of proc(5)."""
    return int(status(Path(f"/proc/{pid}"))["VmRSS"].split()[0]) * 1024


def switches(pid: int) -> dict[int, int]:
    """Context switches of either kind so far, by thread (proc(5)): what sleeps makes none."""
    return {
        int(task.name): sum(
            int(line.split()[1])
            for line in (task / "status").read_text().splitlines()
            if "voluntary_ctxt_switches" in line
        )
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def open_fds(pid: int) -> dict[int, str]:
    """What each descriptor of the process leads to, as readlink tells."""
    links = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links[int(link.name)] = os.readlink(link)
        except FileNotFoundError:  # closed since it was listed
            continue
    return links


def watched_fds(pid: int) -> list[int]:
    """Those that its epoll instances wait for, one after the other; proc_pid_fdinfo(5)."""
    found = []
    for fd, link in open_fds(pid).items():
        if link == "anon_inode:[eventpoll]":
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                found += [int(each) for each in re.findall(r"^tfd: +(\d+)", info, re.M)]
    return found


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """By SIGSTOP, until the block ends."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def of_program(name: str) -> set[int]:
    """This user's processes that run a program of that name."""
    return {pid for pid in _mine() if program(pid) == name}


def _mine() -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if entry.stat().st_uid == os.geteuid():
                found.add(int(entry.name))
    return found
