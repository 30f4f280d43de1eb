"""File processes: what they pass on, what they hold, and how many there are."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from support.files import file_processes
from support.processes import children, wait_for
from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.errors import InvalidArgs, InvalidConfig, InvalidNetns, LimitExceeded
from wg4netnsd.files import client
from wg4netnsd.files.client import FileProcesses, HeldFd
from wg4netnsd.tunnel.lifetime import Lease

FILE = "/proc/version"
"""On a file system that is not memory, wherever the rest is."""


@pytest.fixture
def processes() -> Iterator[FileProcesses]:
    with file_processes() as started:
        yield started


def run(test: Callable[[], Awaitable[object]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(within())


async def passed(processes: FileProcesses, *fds: int) -> list[int | HeldFd]:
    """The descriptors, as a bus passes them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(theirs, [b"x"], fds)
        return await processes.receive(ours, 1)


def test_what_needs_no_file_system() -> None:
    """A memfd is told by its seals: any file may have its name."""
    memory, pipe, other_end = os.memfd_create("config"), *os.pipe()
    files = [
        os.open("/proc/self/status", os.O_RDONLY),
        os.open("/etc/passwd", os.O_PATH),
        os.open("/dev/null", os.O_RDONLY),
        os.open("/dev/shm", os.O_RDONLY),
    ]
    on_tmpfs = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    for fd in (memory, on_tmpfs):
        assert fdpath.is_memory(fd)
        assert fdpath.needs_no_file_system(fd)
    netns = os.open("/proc/self/ns/net", os.O_RDONLY)
    for fd in (pipe, other_end, netns):
        assert not fdpath.is_memory(fd)
        assert fdpath.needs_no_file_system(fd)
    for fd in files:
        assert not fdpath.needs_no_file_system(fd)
    for fd in (memory, pipe, other_end, netns, on_tmpfs, *files):
        os.close(fd)


def test_a_held_descriptor(processes: FileProcesses) -> None:
    content = Path(FILE).read_bytes()
    file, netns, null = (
        os.open(path, os.O_RDONLY) for path in (FILE, "/proc/self/ns/net", "/dev/null")
    )

    async def test() -> None:
        held, own, other = await passed(processes, file, netns, null)
        assert isinstance(held, HeldFd)
        assert isinstance(other, HeldFd)
        assert isinstance(own, int)
        assert os.readlink(f"/proc/self/fd/{own}").startswith("net:")
        os.close(own)
        config = await held.read_config(1 << 20)
        assert os.pread(config, 1 << 20, 0) == content
        os.close(config)
        with pytest.raises(InvalidNetns, match="not a namespace"):
            await other.open_netns()
        (third,) = await passed(processes, null)
        assert isinstance(third, HeldFd)
        with pytest.raises(InvalidConfig, match="neither a file nor a pipe"):
            await third.read_config(1)
        (fourth,) = await passed(processes, file)
        with pytest.raises(InvalidArgs, match="lease"):
            Lease(fourth)

    run(test)
    for fd in (file, netns, null):
        os.close(fd)


def test_processes_come_and_go(processes: FileProcesses, tmp_path: Path) -> None:
    """One is in reserve; one that has opened a file ends, and one that has not stays."""
    (tmp_path / "wg.conf").touch(0o600)
    memory = os.memfd_create("config")

    async def test() -> None:
        def reserve() -> set[int]:
            return children(processes.pid)

        processes.keep_spare()
        (first,) = wait_for(reserve, "it is forked")
        for _ in range(3):
            (fd,) = await passed(processes, memory)
            assert isinstance(fd, int)
            os.close(fd)
        assert reserve() == {first}
        os.close(await processes.read_config(str(tmp_path / "wg.conf"), 10))
        await asyncio.gather(*processes._leaving)
        wait_for(lambda: first not in reserve(), "it has ended")
        assert not processes._in_use

    run(test)
    os.close(memory)


def test_no_more_than_so_many(processes: FileProcesses, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    writer = os.open(fifo, os.O_RDWR)  # so that its reader waits

    async def test() -> None:
        blocking.caller.set("one")
        reading = [
            asyncio.create_task(processes.read_config(str(fifo), 10))
            for _ in range(client.MAX_PROCESSES_PER_CALLER)
        ]
        await asyncio.sleep(0)
        with pytest.raises(LimitExceeded, match="of your files are being read"):
            await processes.read_config(str(fifo), 10)
        blocking.caller.set("two")
        reading.append(asyncio.create_task(processes.read_config(str(fifo), 10)))
        for task in reading:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    run(test)
    os.close(writer)


def test_a_netns_by_its_path(processes: FileProcesses, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def test() -> None:
        fd = await processes.open_netns("/proc/self/ns/net")
        assert os.readlink(f"/proc/self/fd/{fd}") == os.readlink("/proc/self/ns/net")
        os.close(fd)
        for path, error in (("file", "not a namespace"), ("none", "none: No such file")):
            with pytest.raises(InvalidNetns, match=error):
                await processes.open_netns(str(tmp_path / path))

    run(test)
