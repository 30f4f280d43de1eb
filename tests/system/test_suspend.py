"""Resume from suspend: the decision alone, the kernel's timer, and logind played on a real bus."""

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jeepney import DBusAddress, HeaderFields, Message, new_signal

from support.bus import Bus, Client, DBusError
from support.fds import pipe
from support.processes import open_fds, wait_for
from wg4netnsd.host import suspend
from wg4netnsd.host.suspend import FAR, RECENT, TOLERANCE, Clocks, ResumeDetector, SuspendWatch
from wg4netnsd.kernel import syscalls

LOGIND = "org.freedesktop.login1"
LOGIND_PATH = "/org/freedesktop/login1"
MANAGER = "org.freedesktop.login1.Manager"


# ---------------------------------------------------------------- the decision


def clocks(boottime: float, suspended: float) -> Clocks:
    return Clocks(boottime, boottime - suspended)


def test_a_clock_that_was_set_is_no_resume() -> None:
    detector = ResumeDetector(clocks(100, 7))
    assert not detector.detect(clocks(200, 7))
    assert not detector.detect(clocks(300, 7 + TOLERANCE / 2))


def test_a_resume_is_news_once() -> None:
    detector = ResumeDetector(clocks(100, 0))
    assert detector.detect(clocks(4000, 3600)) == "the machine was suspended for 3600 s"
    assert not detector.detect(clocks(4000, 3600))


def test_a_resume_of_a_long_suspended_machine() -> None:
    detector = ResumeDetector(clocks(1e6, 9e5))
    assert not detector.detect(clocks(1e6 + 1, 9e5))
    assert detector.detect(clocks(1e6 + 100, 9e5 + 60)) == "the machine was suspended for 60 s"


def test_logind_comes_after_the_clocks() -> None:
    detector = ResumeDetector(clocks(100, 0))
    assert detector.detect(clocks(500, 300))
    assert not detector.detect(clocks(500 + RECENT, 300), announced=True)


def test_logind_comes_before_the_clocks() -> None:
    detector = ResumeDetector(clocks(100, 0))
    assert (
        detector.detect(clocks(500, 300), announced=True) == "the machine was suspended for 300 s"
    )
    assert not detector.detect(clocks(500, 300))


def test_logind_tells_of_what_the_clocks_do_not() -> None:
    detector = ResumeDetector(clocks(3, 0))  # started right after the boot
    assert detector.detect(clocks(4, 0), announced=True) == "the machine has resumed"
    assert not detector.detect(clocks(5, 0), announced=True)
    assert detector.detect(clocks(5 + RECENT, 0), announced=True)


def test_suspended_again_at_once() -> None:
    detector = ResumeDetector(clocks(100, 0))
    assert detector.detect(clocks(200, 50))
    assert detector.detect(clocks(203, 52)) == "the machine was suspended for 2 s"


def test_the_clocks_are_the_kernels() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    read = suspend.read_clocks()
    assert before <= read.boottime <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert read.monotonic <= time.monotonic()


# ---------------------------------------------------------------- the kernel's timer


@pytest.fixture
def timer() -> Iterator[int]:
    fd = suspend.create_timer()
    yield fd
    os.close(fd)


def fdinfo(fd: int) -> dict[str, str]:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_armed(fd: int) -> bool:
    """Whether it waits, for longer than a machine lives, to be cancelled when the clock is set."""
    info = fdinfo(fd)
    seconds, _ = info["it_value"].strip("()").split(",")
    return info["settime flags"] == "03" and int(seconds) > 100 * 365 * 86400


def is_readable(fd: int, seconds: float = 0) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def test_the_timer_waits_for_the_clock_to_be_set(timer: int) -> None:
    suspend.arm(timer, FAR)
    assert fdinfo(timer)["clockid"] == str(time.CLOCK_REALTIME)
    assert is_armed(timer)
    assert not is_readable(timer)
    assert not suspend.read_timer(timer)
    assert not os.get_inheritable(timer)


def test_the_timer_ends_and_can_be_armed_again(timer: int) -> None:
    suspend.arm(timer, int(time.time()) + 1)
    assert is_readable(timer, 5)
    assert suspend.read_timer(timer)
    assert not suspend.read_timer(timer)
    suspend.arm(timer, FAR)
    assert not is_readable(timer)


def test_errors_have_their_syscalls_name() -> None:
    with pytest.raises(OSError, match="timerfd_create"):
        syscalls.timerfd_create(-1, 0)
    with open(os.devnull) as file, pytest.raises(OSError, match="timerfd_settime"):
        suspend.arm(file.fileno(), FAR)


# ---------------------------------------------------------------- the watcher


def test_each_wake_up_reads_the_clocks(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """The timer's end stands for the clock's being set: a test must not set it."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={directory}/none")

    async def test() -> None:
        told: asyncio.Queue[str] = asyncio.Queue()
        readings = iter([clocks(100, 0), clocks(4000, 3600), clocks(5000, 3600)])
        watcher = SuspendWatch(
            told.put_nowait, lambda: told.put_nowait("clock set"), lambda: next(readings)
        )
        (timer,) = (fd for fd, kind in open_fds(os.getpid()).items() if "timerfd" in kind)
        for expected in ("the machine was suspended for 3600 s", "clock set"):
            assert is_armed(timer)
            suspend.arm(timer, 1)  # ended in 1970
            assert await asyncio.wait_for(told.get(), 10) == expected
        assert is_armed(timer)
        watcher.close()
        watcher.close()

    before = open_fds(os.getpid())
    asyncio.run(test())
    assert open_fds(os.getpid()) == before


# ---------------------------------------------------------------- logind

# Tells what SuspendWatch tells and logs, a line each; ends with its standard input.
WATCH = """
import asyncio, logging, os, sys
from wg4netnsd.host.suspend import SuspendWatch

async def watch():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    before = os.listdir("/proc/self/fd")
    suspend = SuspendWatch(lambda reason: print(reason, flush=True))
    print("ready", flush=True)
    await ended.wait()
    suspend.close()
    if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks, timeout=5)
    assert os.listdir("/proc/self/fd") == before

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
asyncio.run(watch(), debug=True)
"""
RESUMED = "the machine has resumed"
EPOLL, FOR_EVER = {"x86_64": 232, "aarch64": 22}[os.uname().machine], 0xFFFFFFFF
"""epoll_wait(2), or epoll_pwait(2), whose fourth argument is its timeout."""


class Watcher:
    """A process with a SuspendWatch, on the machine's clocks and a system bus of the test's."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address},
        )
        assert self.next() == "ready"

    def next(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> list[str]:
        """What it told that nobody has read."""
        rest, complaints = self.process.communicate(timeout=20)
        assert (self.process.returncode, complaints) == (0, "")
        return rest.splitlines()

    def assert_asleep(self) -> None:
        """That it waits for events alone, and for as long as there is none."""
        wait_for(lambda: self._waits_for() == (EPOLL, FOR_EVER), "it goes to sleep")

    def _waits_for(self) -> tuple[int, int]:
        """The system call that it is in, and its fourth argument, an int, of which the other half
        of the register says nothing (proc_pid_syscall(5))."""
        number, *arguments = Path(f"/proc/{self.process.pid}/syscall").read_text().split()
        return (
            (int(number), int(arguments[3], 16) & 0xFFFFFFFF) if arguments else (-1, -1)
        )  # it runs


class Logind(Client):
    """What a watcher knows of logind: its name, and a signal."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.bus("RequestName", "su", LOGIND, 4)

    def prepare_for_sleep(self, start: bool, path: str = LOGIND_PATH) -> None:
        self.connection.send(signal(start, path))


def signal(start: bool, path: str = LOGIND_PATH) -> Message:
    emitter = DBusAddress(path, interface=MANAGER)
    return new_signal(emitter, "PrepareForSleep", "b", (start,))


@pytest.fixture
def system_bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        started = Bus(Path(directory), counts_rules=True)
        yield started
        if started.process.poll() is None:
            started.close()


def listener(bus: Bus) -> str:
    """The unique name of who listens to logind, once somebody does."""
    rules = bus.rules
    assert rules
    with Client(bus.address) as client:

        def find() -> str:
            names = client.bus("ListNames")
            return next((name for name in names if LOGIND in str(rules.of(name))), "")

        return wait_for(find, "somebody listens to logind")


def test_logind_tells_of_a_resume(system_bus: Bus) -> None:
    watcher = Watcher(system_bus.address)
    with Logind(system_bus.address) as logind:
        listener(system_bus)
        logind.prepare_for_sleep(True)
        logind.prepare_for_sleep(False)
        assert watcher.next() == RESUMED
        watcher.assert_asleep()
        logind.prepare_for_sleep(False)  # the same resume still
        logind.bus("GetId")
    assert watcher.end() == []


def test_only_logind_is_believed(system_bus: Bus) -> None:
    watcher = Watcher(system_bus.address)
    with Logind(system_bus.address) as logind, Client(system_bus.address) as other:
        name = listener(system_bus)
        other.connection.send(signal(False))
        directed = signal(False)
        directed.header.fields[HeaderFields.destination] = name
        other.connection.send(directed)
        logind.prepare_for_sleep(False, "/somewhere/else")
        # The bus works in order: had any of these been believed, this would come after it.
        other.bus("GetId")
        logind.prepare_for_sleep(True)
        logind.bus("GetId")
        with pytest.raises(DBusError, match="none is here"):
            other.call("/", "org.freedesktop.DBus.Peer", "Ping", destination=name)
    assert watcher.end() == []


def test_fds_find_no_way_in(system_bus: Bus) -> None:
    """A listener never says that it takes any, so the bus passes it no message with some."""
    watcher = Watcher(system_bus.address)
    with Logind(system_bus.address) as logind, pipe() as (read_end, _):
        message = new_signal(
            DBusAddress(LOGIND_PATH, interface=MANAGER), "PrepareForSleep", "h", (read_end,)
        )
        listener(system_bus)
        before = open_fds(watcher.process.pid)
        logind.connection.send(message)
        logind.prepare_for_sleep(False)
        assert watcher.next() == RESUMED
        assert open_fds(watcher.process.pid) == before
    assert watcher.end() == []


def test_the_bus_goes_away(system_bus: Bus) -> None:
    watcher = Watcher(system_bus.address)
    with Logind(system_bus.address):
        listener(system_bus)
        system_bus.close()
    assert watcher.next().startswith(
        "logind is not watched, only the kernel's clocks: system bus: "
    )
    watcher.assert_asleep()
    assert watcher.end() == []


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("unix:path=/nonexistent", "No such file or directory"),
        ("garbage", ""),
        ("unix:path=%zz", ""),
        ("tcp:host=localhost,port=1", "tcp: not supported"),
    ],
)
def test_no_system_bus(address: str, problem: str) -> None:
    watcher = Watcher(address)
    line = watcher.next()
    assert line.startswith("logind is not watched")
    assert line.endswith(problem)
    assert watcher.end() == []


@pytest.mark.parametrize("said", [b"", b"REJECTED\r\n", b"gar\xffbage\r\n", b"x" * 10000])
def test_what_is_no_bus(directory: Path, said: bytes) -> None:
    """It takes connections, and says something or nothing, and hangs up."""
    path = directory / f"imposter{said[:3].hex()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        watcher = Watcher(f"unix:path={path}")
        connection, _ = server.accept()
        with connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            assert watcher.next().startswith("logind is not watched")
    assert watcher.end() == []


def test_a_bus_that_says_nothing(directory: Path) -> None:
    """The daemon's start does not wait for it, nor does its end."""
    path = directory / "silent"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(0)
        first = Watcher(f"unix:path={path}")
        # The kernel takes one more than it was told; for the others connect(2) would wait.
        connection, _ = server.accept()
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            for each in waiting:
                stack.callback(each.close)
                each.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    each.connect(str(path))
            second = Watcher(f"unix:path={path}")
            assert second.next().endswith("Resource temporarily unavailable")
            assert second.end() == []
            assert first.end() == []
