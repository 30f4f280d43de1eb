"""A file system that gives no answer, and the calls that lead the daemon to a file there.

What hangs on such a file hangs in the kernel, where not even SIGKILL ends it. That may be a process
that holds nothing of the daemon's, and nothing else: other calls are answered, and a daemon that is
killed, restarted or stopped meanwhile ends at once.
"""

import asyncio
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from support.bus import MANAGER, ROOT, Client
from support.buses import ON_BOTH
from support.configs import Secrets
from support.daemon import Daemon
from support.fds import memfd
from support.files import file_processes
from support.fuse import StallingFiles
from support.namespaces import MakeNamespace, Namespace
from support.processes import open_fds, wait_for
from support.stalled import (
    Call,
    calling,
    config_fd,
    config_path,
    hung,
    lease,
    netns_fd,
    netns_path,
    netns_to_look_up,
    new_config_fd,
    new_config_path,
    one_too_many,
)
from wg4netnsd.bus.server import CLOSE_TIME
from wg4netnsd.errors import Timeout
from wg4netnsd.files.client import MAX_PROCESSES, MAX_PROCESSES_PER_CALLER, FileProcesses, HeldFd

QUICK = 4.0
"""Seconds for what does not wait for a file: less than any limit of the daemon's for files."""

ENDS = {
    config_fd: "Timeout: config: no end of file within 5 s",
    config_path: "Timeout: config: no end of file within 5 s",
    netns_fd: "Timeout: netns: its file system gave no answer in 5 s",
    netns_path: "Timeout: netns: its file system gave no answer in 5 s",
    netns_to_look_up: "Timeout: netns: its file system gave no answer in 5 s",
    lease: "InvalidArgs: lease: expected one end of a pipe or a socket, or a pidfd",
    one_too_many: "InvalidArgs: ",
    new_config_fd: "Timeout: config: no end of file within 5 s",
    new_config_path: "Timeout: config: no end of file within 5 s",
}
WITHOUT_PATHS = [call for call in ENDS if not call.__name__.endswith("path")]


@ON_BOTH
@pytest.mark.parametrize(
    ("name", "calls"),
    [("wg.conf", list(ENDS)), ("memfd:config", WITHOUT_PATHS)],
    ids=["file", "memfd"],
)
def test_others_notice_nothing(
    daemon: Daemon, client: Client, namespace: MakeNamespace, name: str, calls: list[Call]
) -> None:
    """Not even if its name is a memfd's."""
    tunnel = client.create(namespace(), Secrets().conf())
    inside, other = namespace(), namespace()
    with ExitStack() as stack:
        callers = {
            call: stack.enter_context(calling(daemon.address, call, inside.path, name))
            for call in calls
        }
        for _ in range(10):
            began = time.monotonic()
            client.get(tunnel, "State")
            client.close_tunnel(client.create(other, Secrets().conf()))
            assert time.monotonic() - began < QUICK
        for call, caller in callers.items():
            assert caller.answer().startswith(ENDS[call])
        assert not [link for link in open_fds(daemon.pid).values() if link.endswith(name)]
    client.close_tunnel(tunnel)


@pytest.mark.parametrize("call", [config_fd, netns_fd])
def test_it_ends_while_a_process_hangs(
    start_daemon: Callable[..., Daemon], inside: Namespace, call: Call
) -> None:
    daemon = start_daemon()
    with calling(daemon.address, call, inside.path):
        wait_for(lambda: hung(daemon.pid), "a process hangs")
        began = time.monotonic()
        daemon.client.close()
        daemon.process.terminate()
        daemon.process.wait(30)
        assert time.monotonic() - began < CLOSE_TIME + QUICK


def test_even_a_close_that_hangs_is_not_the_daemons() -> None:
    """It never has the descriptor. A bus would hang here first: it closes what it passes on."""
    ours, theirs = socket.socketpair()
    with StallingFiles() as files, ours, theirs:
        pid = os.fork()
        if pid == 0:  # a sender of its own, as it can't close what it has sent either
            with open(files.path) as file:
                socket.send_fds(theirs, [b"one"], [file.fileno()])
                signal.pause()
        assert select.select([ours], [], [])
        files.stall(close_hangs=True)

        async def test(processes: FileProcesses) -> None:
            (held,) = await processes.receive(ours, 3)
            assert isinstance(held, HeldFd)
            with pytest.raises(Timeout):
                await held.read_config(1000)
            with memfd("") as config:
                socket.send_fds(theirs, [b"two"], [config])
            (fd,) = await processes.receive(ours, 3)
            assert isinstance(fd, int)
            os.close(fd)
            links = open_fds(os.getpid()).values()
            assert not [link for link in links if link.endswith(files.name)]

        with file_processes() as processes:
            asyncio.run(test(processes))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_many_of_them(daemon: Daemon, client: Client, namespace: MakeNamespace) -> None:
    """A client that sends one after another takes no more than its share of processes."""
    inside = namespace()

    def many(client: Client, fd: int, _path: str, netns: str) -> None:
        for _ in range(MAX_PROCESSES):
            client.send(client.message(ROOT, MANAGER, "GetTunnelByNetns", "h", [fd]))
        netns_to_look_up(client, fd, _path, netns)

    with calling(daemon.address, many, inside.path) as caller:
        limit = MAX_PROCESSES_PER_CALLER
        expected = f"LimitExceeded: {limit} of your files are being read already"
        assert caller.answer() == expected
        wait_for(lambda: len(hung(daemon.pid)) == limit, "those of its share hang")
        client.close_tunnel(client.create(inside, Secrets().conf()))
