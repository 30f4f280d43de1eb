"""What test_hostile_files.py has hang, under systemd: the next daemon takes over all the same."""

import fcntl
import os
import signal
import time

import pytest

from support.aftermath import Seen, Then, Tunnel
from support.bus import Client
from support.configs import Secrets
from support.fds import opened
from support.installed import main_pid, wait_successor
from support.manager import UNIT, UserManager
from support.namespaces import MakeNamespace
from support.processes import is_alive, wait_for
from support.stalled import Call, calling, config_fd, config_path, hung, netns_fd, waits


def end_by(manager: UserManager, how: str) -> None:
    began = time.monotonic()
    before = main_pid(manager)
    if how == "restart":
        manager.systemctl("restart", UNIT)
    else:
        manager.systemctl("kill", "--kill-who=main", f"--signal={how}", UNIT)
    wait_successor(manager, before)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("how", ["SIGKILL", "restart"])
@pytest.mark.parametrize("call", [config_fd, config_path, netns_fd])
def test_a_successor_takes_over(
    unlimited: UserManager, namespace: MakeNamespace, call: Call, how: str
) -> None:
    with Client(unlimited.address) as client:
        inside = namespace()
        path = client.create(inside, Secrets().conf())
        tunnel = Tunnel(inside, path, Seen.of(client, path))
        with calling(unlimited.address, call, namespace().path):
            wait_for(lambda: hung(main_pid(unlimited)), "a process hangs")
            for _ in range(2):
                end_by(unlimited, how)
                tunnel.assert_then(Then.AS_IT_WAS, client)
            client.close_tunnel(client.create(namespace(), Secrets().conf()))
        client.close_tunnel(path)


def test_stop_leaves_only_what_nothing_can_end(
    unlimited: UserManager, namespace: MakeNamespace
) -> None:
    with Client(unlimited.address) as client:
        client.create(namespace(), Secrets().conf())
        with calling(unlimited.address, config_fd, namespace().path):
            wait_for(lambda: hung(main_pid(unlimited)), "a process hangs")
            began = time.monotonic()
            unlimited.systemctl("stop", UNIT)
            assert time.monotonic() - began < 10
            left = unlimited.processes(UNIT)
            assert [waits(pid) for pid in left] == [True]
            assert not (unlimited.runtime / "wg4netnsd").exists()
        wait_for(lambda: not any(map(is_alive, left)), "it ends with its file system")


def test_a_held_directory_is_waited_for(unlimited: UserManager, namespace: MakeNamespace) -> None:
    """What holds the runtime directory's lock may go on to do so for a while."""
    with Client(unlimited.address) as client:
        inside = namespace()
        path = client.create(inside, Secrets().conf())
        tunnel = Tunnel(inside, path, Seen.of(client, path))
        with opened(str(unlimited.runtime / "wg4netnsd")) as lock:
            before = main_pid(unlimited)
            os.kill(before, signal.SIGSTOP)  # so that its end can't be seen before the lock is ours
            unlimited.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", UNIT)
            fcntl.flock(lock, fcntl.LOCK_EX)
            time.sleep(3)
            assert unlimited.property(UNIT, "ActiveState") == "activating"
        wait_successor(unlimited, before)
        tunnel.assert_then(Then.AS_IT_WAS, client)
        client.close_tunnel(path)
