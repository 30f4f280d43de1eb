"""What the daemon needs of its surroundings is lacking for a while, or changes under it.

Tunnels that are up go on; a new one can be had, or is refused with an error that says what is
lacking, and leaves nothing; and when the fault is over all is as before, without a restart.
"""

import errno
import itertools
import os
import re
import resource
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from support.bus import MANAGER, ROOT, DBusError
from support.daemon import Daemon
from support.namespaces import MakeNamespace, ping
from support.processes import open_fds, wait_for
from support.stage import LIBFAKETIME, SMALL, Stage

SPACE = 4  # namespaces that a test has


# ---------------------------------------------------------------- the faults


@contextmanager
def limited(pid: int, kind: int, value: int) -> Iterator[None]:
    """A running process with another soft limit."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


@contextmanager
def runtime_directory_read_only(daemon: Daemon) -> Iterator[None]:
    daemon.directory.chmod(0o500)
    yield
    daemon.directory.chmod(0o700)


@contextmanager
def runtime_directory_removed(daemon: Daemon) -> Iterator[None]:
    """As a clean-up of temporary files does."""
    shutil.rmtree(daemon.directory)
    yield


def fds_left(number: int) -> Callable[[Daemon], AbstractContextManager[None]]:
    """RLIMIT_NOFILE leaves so many."""

    def fault(daemon: Daemon) -> AbstractContextManager[None]:
        daemon.client.tunnels()  # answered once the fds that only a spawning took are closed
        # The limit is the first number that is no fd, and there may be gaps below it.
        taken = sorted(open_fds(daemon.pid))
        free = [fd for fd in range(taken[-1] + number + 2) if fd not in taken]
        return limited(daemon.pid, resource.RLIMIT_NOFILE, free[number])

    fault.__name__ = f"{number}_fds_left"
    return fault


@contextmanager
def no_new_processes(daemon: Daemon) -> Iterator[None]:
    """RLIMIT_NPROC of the daemon is reached: it can start neither processes nor threads."""
    with limited(daemon.pid, resource.RLIMIT_NPROC, 1):
        yield


@contextmanager
def no_new_children_of_the_agent(daemon: Daemon) -> Iterator[None]:
    agent = daemon.agent
    with limited(agent, resource.RLIMIT_NPROC, 1):
        yield


NEVER, PERHAPS, ONCE, ALWAYS = {0}, {0, 1, 2, 3}, {1, 2, 3}, {3}
"""How many of three creates are refused. `ONCE`: at least; the agent's next child was there."""

FAULTS = pytest.mark.parametrize(
    ("fault", "errors", "times"),
    [
        pytest.param(fault, errors, times, id=fault.__name__.replace("_", "-"))
        for fault, errors, times in [
            (runtime_directory_read_only, {"EngineFailed": "Permission denied"}, ALWAYS),
            (runtime_directory_removed, {}, NEVER),
            (no_new_processes, {"LimitExceeded": ""}, ALWAYS),
            (no_new_children_of_the_agent, {"LimitExceeded": "fork"}, ONCE),
            *((fds_left(number), {"LimitExceeded": ""}, ALWAYS) for number in (0, 1, 2)),
            *((fds_left(number), {"LimitExceeded": ""}, PERHAPS) for number in (5, 8, 11, 14)),
            (fds_left(20), {}, NEVER),
        ]
    ],
)


@FAULTS
def test_what_is_lacking_is_told_and_passes(
    start_daemon: Callable[..., Daemon],
    namespace: MakeNamespace,
    stage: Stage,
    fault: Callable[[Daemon], AbstractContextManager[None]],
    errors: dict[str, str],
    times: set[int],
) -> None:
    daemon = start_daemon()
    spaces = [namespace() for _ in range(SPACE)]
    up, others = spaces[0], spaces[1:]
    path = daemon.client.create(up, stage.conf(0), name="up")
    ping(up, stage.far.ipv4)
    wait_for(lambda: len(daemon.engines()) == 2, "there is a spare one again")
    refusals = []
    with fault(daemon):
        for number, inside in enumerate(others, 1):
            ping(up, stage.far.ipv4)
            try:
                its = daemon.client.create(inside, stage.conf(number), name=f"other{number}")
            except DBusError as refused:
                refusals.append(refused)
                assert set(inside.links()) == {"lo"}
            else:
                ping(inside, stage.far.ipv4)
                daemon.client.close_tunnel(its)
            assert [name for name, *_ in daemon.client.tunnels()] == ["up"]
    for refused in refusals:
        assert errors.get(refused.short_name, "not expected") in refused.message, daemon.log
    assert len(refusals) in times
    for number, inside in enumerate(others, 1):
        its = daemon.client.create(inside, stage.conf(number))
        ping(inside, stage.far.ipv4)
        daemon.client.close_tunnel(its)
    assert daemon.client.get(path, "State") == "up"
    assert "defect" not in daemon.log
    assert "Traceback" not in daemon.log
    daemon.client.close_tunnel(path)
    wait_for(lambda: daemon.footprint() == daemon.idle, "it is as it was")


@contextmanager
def descriptors_on_their_way(number: int) -> Iterator[None]:
    """Sent by a process of the user's, and not received."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(number // 100):
            socket.send_fds(ours, [b"1"], [ours.fileno()] * 100)
        yield


def test_too_many_descriptors_on_their_way(
    start_daemon: Callable[..., Daemon], namespace: MakeNamespace, stage: Stage
) -> None:
    """Neither the agent nor an engine can be given one."""
    daemon = start_daemon()
    up, other = namespace(), namespace()
    path = daemon.client.create(up, stage.conf(0))
    message = "LimitExceeded: no file descriptor left for the message's"
    with descriptors_on_their_way(300), limited(daemon.pid, resource.RLIMIT_NOFILE, 200):
        with pytest.raises(DBusError, match=message):
            daemon.client.create(other, stage.conf(1))
        reason = "LimitExceeded: .*: Too many references"
        os.kill(daemon.client.get(path, "EnginePID"), signal.SIGKILL)
        wait_for(
            lambda: re.match(reason, daemon.client.get(path, "LastError")[1]), "it is told why"
        )
    daemon.client.tunnel(path, "WaitForState", "ast", ["up"], 30_000_000)
    ping(up, stage.far.ipv4)
    daemon.close_tunnels()


@contextmanager
def full(file_system: Path) -> Iterator[None]:
    made = []
    try:
        for number in itertools.count():
            filling = file_system / f"filling{number}"
            filling.touch()
            made.append(filling)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    yield
    for filling in made:
        filling.unlink()


def test_a_full_runtime_directory_is_told_and_passes(
    start_daemon: Callable[..., Daemon], namespace: MakeNamespace, stage: Stage
) -> None:
    daemon = start_daemon("--runtime-dir", str(SMALL / "engines"))
    up, other = namespace(), namespace()
    daemon.client.create(up, stage.conf(0))
    with full(SMALL):
        ping(up, stage.far.ipv4)
        with pytest.raises(DBusError, match=r"EngineFailed: .*No space left on device"):
            daemon.client.create(other, stage.conf(1))
        assert set(other.links()) == {"lo"}
    daemon.client.create(other, stage.conf(1))
    ping(other, stage.far.ipv4)
    daemon.stop()
    assert list(SMALL.iterdir()) == []


def test_the_limit_of_tunnels_follows_from_that_of_fds(
    start_daemon: Callable[..., Daemon],
) -> None:
    """The daemon raises its soft limit by itself: it is the hard one that counts."""
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert start_daemon().client.get(ROOT, "MaxTunnels", MANAGER) == min(256, (ours[1] - 160) // 17)


# ---------------------------------------------------------------- the clock


@pytest.mark.parametrize("jump", ["+1d", "-1d", "+3650d"])
def test_the_clock_jumps(
    start_daemon: Callable[..., Daemon],
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
    jump: str,
) -> None:
    """The daemon's CLOCK_REALTIME, by libfaketime; the engine's is the real one."""
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    daemon = start_daemon(
        LD_PRELOAD=LIBFAKETIME,
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    spaces = [namespace() for _ in range(2)]
    path = daemon.client.create(spaces[0], stage.conf(0))
    ping(spaces[0], stage.far.ipv4)
    before = daemon.client.get(path, "EnginePID")
    clock.write_text(f"{jump}\n")
    other = daemon.client.create(spaces[1], stage.conf(1), wait="handshake")
    made = abs(daemon.client.get(other, "CreatedUSec") - daemon.client.get(path, "CreatedUSec"))
    assert made > 80_000_000_000  # a day, so the jump has come
    ping(spaces[0], stage.far.ipv4)
    for each in (path, other):
        (peer,) = daemon.client.peers(each).values()
        assert peer["state"] == "active"
    assert daemon.client.get(path, "EnginePID") == before
    daemon.client.tunnel(path, "Restart")
    ping(spaces[0], stage.far.ipv4)
    assert "Traceback" not in daemon.log
    daemon.close_tunnels()
