"""A process that is watched and killed by its pidfd, our child or that of a daemon before us."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable

import pytest

from support.processes import is_alive, program, state, stopped, wait_for
from wg4netnsd.aio import process
from wg4netnsd.aio.process import Process

Test = Callable[[subprocess.Popen[bytes]], Awaitable[None]]


def with_child(test: Test, *command: str) -> None:
    """Run `test` with a child, which is gone afterwards."""
    with subprocess.Popen(command or ("sleep", "1000")) as child:
        try:
            asyncio.run(test(child))
        finally:
            child.kill()


def watched(child: subprocess.Popen[bytes]) -> Process:
    return Process(os.pidfd_open(child.pid), child)


def adopted(child: subprocess.Popen[bytes]) -> Process:
    """As by a daemon that is not its parent."""
    return Process(os.pidfd_open(child.pid))


@pytest.mark.parametrize(
    ("take", "ending"), [(watched, "ended by signal SIGKILL"), (adopted, "ended")]
)
def test_it_is_gone_when_kill_returns(
    take: Callable[[subprocess.Popen[bytes]], Process], ending: str
) -> None:
    async def test(child: subprocess.Popen[bytes]) -> None:
        one = take(child)
        assert one.pid == child.pid
        assert one.describe_exit() == "still runs, but its connection is broken"
        await one.kill(10)
        assert not is_alive(child.pid)
        assert one.exited.is_set()
        assert one.describe_exit() == ending
        await one.kill(10)  # it has been

    with_child(test)


def test_one_that_does_not_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel may hold one: whoever would go on without it must not."""

    async def test(child: subprocess.Popen[bytes]) -> None:
        one = watched(child)
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
        with pytest.raises(TimeoutError):
            await one.kill(0.05)
        assert is_alive(child.pid)
        assert not one.exited.is_set()
        one.close()

    with_child(test)


def test_one_that_ends_by_itself() -> None:
    async def test(child: subprocess.Popen[bytes]) -> None:
        one = watched(child)
        await asyncio.wait_for(one.exited.wait(), 10)
        assert one.describe_exit() == "ended with status 3"
        assert one.vitals() is None

    with_child(test, "sh", "-c", "exit 3")


def test_a_pidfd_of_one_that_has_ended() -> None:
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
        assert process.pid_of(pidfd) == child.pid
    assert process.pid_of(pidfd) == -1
    os.close(pidfd)


def test_vitals() -> None:
    async def test(child: subprocess.Popen[bytes]) -> None:
        one = watched(child)
        wait_for(lambda: (program(child.pid), state(child.pid)) == ("sleep", "S"), "it sleeps")
        seen = one.vitals()
        assert seen
        assert (seen.memory > 0, seen.stopped) == (True, False)
        assert one.vitals() == seen
        with stopped(child.pid):
            wait_for(lambda: (now := one.vitals()) and now.stopped, "it has stopped")
        one.close()

    with_child(test)


def test_time_that_it_uses_is_seen() -> None:
    async def test(child: subprocess.Popen[bytes]) -> None:
        one = watched(child)
        first = one.vitals()
        assert first
        wait_for(lambda: (now := one.vitals()) and now.cpu_ns > first.cpu_ns, "it shows")
        one.close()

    with_child(test, "sh", "-c", "while :; do :; done")
