"""The daemon fails, or is made to: in what way, how often, in the middle of what.

systemd starts the next one and tunnels stay as they were; or, if it gives up, nothing is left.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from support.aftermath import Seen, Then, Tunnel, assert_no_strays
from support.bus import Client, DBusError
from support.configs import Secrets
from support.fds import changed_package
from support.installed import assert_nothing_left, crash, main_pid, wait_successor
from support.manager import UNIT, UserManager
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import children, is_alive, of_program, program, wait_for
from support.stage import Stage
from support.tamper import changed_unit

STORED = 8
"""What systemd holds of a tunnel: its record, TUN and two UDP sockets, and four of its engine's."""


def make(client: Client, inside: Namespace, conf: str, **options: str) -> Tunnel:
    path = client.create(inside, conf, **options)
    return Tunnel(inside, path, Seen.of(client, path))


@pytest.fixture
def client(installed: UserManager) -> Iterator[Client]:
    with Client(installed.address) as connected:
        yield connected


# ---------------------------------------------------------------- it hangs, or has a defect


def hang(manager: UserManager) -> None:
    """The event loop stands still; the watchdog's time is 2 s here."""
    os.kill(main_pid(manager), signal.SIGSTOP)


def lose_its_agent(manager: UserManager) -> None:
    """Without it there can be no new tunnel, and it can't be started anew."""
    for pid in children(main_pid(manager)):
        if program(pid) == "wg4netns-agent":
            os.kill(pid, signal.SIGKILL)


def fail_unexpectedly(manager: UserManager) -> None:
    """The beat's coroutine meets an error that nobody foresaw: see `fragile`."""
    (manager.runtime / "defect").touch()


@contextmanager
def broken(
    manager: UserManager, directory: Path, line: str, instead: str, *settings: str
) -> Iterator[None]:
    """A daemon with another line in place of one of its own."""
    package = changed_package(directory, "daemon.py", line, instead)
    program = f"/usr/bin/env PYTHONPATH={package.parent} {sys.executable} -m wg4netnsd"
    with changed_unit(manager, lambda command: program, *settings):
        yield


@pytest.fixture
def fragile(installed: UserManager, tmp_path: Path) -> Iterator[UserManager]:
    """A daemon with a watchdog of 2 s, and a defect that a file brings out."""
    line = "    status = await _first_end(ends)\n"
    trap = f"""
    async def defect() -> str:
        while not os.path.exists({str(installed.runtime / "defect")!r}):
            await asyncio.sleep(0.05)
        os.unlink({str(installed.runtime / "defect")!r})
        raise RuntimeError("a defect")
    ends[asyncio.ensure_future(defect())] = EXIT_FAILURE
"""
    with broken(installed, tmp_path, line, trap + line, "WatchdogSec=2"):
        yield installed


@pytest.mark.parametrize("fault", [hang, lose_its_agent, fail_unexpectedly])
def test_tunnels_outlive_a_daemon_that_fails(
    fragile: UserManager,
    namespace: MakeNamespace,
    client: Client,
    stage: Stage,
    fault: Callable[[UserManager], None],
) -> None:
    tunnel = make(client, namespace(), stage.conf())
    before = main_pid(fragile)
    fault(fragile)
    ping(tunnel.inside, stage.far.ipv4)
    wait_successor(fragile, before)
    tunnel.assert_then(Then.AS_IT_WAS, client)
    ping(tunnel.inside, stage.far.ipv4)
    assert_no_strays(fragile, client)
    client.close_tunnel(tunnel.path)


# ---------------------------------------------------------------- its end


def test_a_hung_engine_does_not_outlive_stop(
    installed: UserManager, client: Client, namespace: MakeNamespace
) -> None:
    tunnel = make(client, namespace(), Secrets().conf())
    os.kill(tunnel.before.engine, signal.SIGSTOP)
    installed.systemctl("stop", UNIT)
    assert_nothing_left(installed)
    assert set(tunnel.inside.links()) == {"lo"}


def test_engines_end_when_the_daemon_is_killed_while_it_stops(
    installed: UserManager, client: Client, namespace: MakeNamespace, tmp_path: Path
) -> None:
    """systemd drops what it holds, and nobody holds their handover sockets any more. One that is
    stopped can't notice: the next daemon sees to it."""
    line = '        await service.manager.close_all("the daemon is ending")\n'
    stuck = "        await asyncio.sleep(3600)\n"
    with broken(installed, tmp_path, line, stuck, "TimeoutStopSec=1"):
        ends, stays = (make(client, namespace(), Secrets().conf()) for _ in range(2))
        crash(installed)  # else the kernel ends what is stopped with its parent: setpgid(2)
        os.kill(stays.before.engine, signal.SIGSTOP)
        installed.systemctl("stop", UNIT)
        assert installed.property(UNIT, "Result") == "timeout"
        assert installed.property(UNIT, "NFileDescriptorStore") == "0"
        left = {stays.before.engine}
        wait_for(lambda: of_program("wireguard-go") <= left, "the others have ended")
        assert of_program("wireguard-go") == left
        wait_for(lambda: set(ends.inside.links()) == {"lo"}, "its interface is gone")
    installed.systemctl("start", UNIT)
    assert client.tunnels() == []
    assert not is_alive(stays.before.engine)
    assert set(stays.inside.links()) == {"lo"}
    assert_no_strays(installed, client)


def test_nothing_is_left_when_systemd_gives_up(
    installed: UserManager, client: Client, namespace: MakeNamespace
) -> None:
    limits = ["[Unit]", "StartLimitIntervalSec=60", "StartLimitBurst=3"]
    with changed_unit(installed, str, *limits):
        tunnel = make(client, namespace(), Secrets().conf())
        for _ in range(2):
            crash(installed)
            tunnel.assert_then(Then.AS_IT_WAS, client)
        installed.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", UNIT)
        wait_for(lambda: installed.property(UNIT, "ActiveState") == "failed", "systemd gives up")
        assert installed.property(UNIT, "NFileDescriptorStore") == "0"
        wait_for(lambda: of_program("wireguard-go") == set(), "the engines end")
        assert set(tunnel.inside.links()) == {"lo"}
        installed.systemctl("reset-failed", UNIT)
        assert client.tunnels() == []  # which starts it


# ---------------------------------------------------------------- many tunnels, many ends


def test_64_tunnels(installed: UserManager, client: Client, namespace: MakeNamespace) -> None:
    names = [f"{number}._@-{'x' * (number % 40)}" for number in range(64)]
    tunnels = [make(client, namespace(), Secrets().conf(), name=name) for name in names]
    for _ in range(2):
        crash(installed)
        assert len(client.tunnels()) == 64
        for tunnel in tunnels:
            tunnel.assert_then(Then.AS_IT_WAS, client)
    assert_no_strays(installed, client)
    assert installed.property(UNIT, "NFileDescriptorStore") == str(STORED * 64)


ROUNDS = 12


def change(address: str, inside: Namespace, name: str, stop: threading.Event) -> None:
    """Create, restart and close a tunnel over and over, whatever comes of it."""
    conf = Secrets().conf()
    while not stop.is_set():
        try:
            with Client(address) as client:
                path = f"/org/wg4netns1/tunnel/{name}"
                if not any(each[0] == name for each in client.tunnels()):
                    path = client.create(inside, conf, name=name)
                client.tunnel(path, "Restart")
                client.close_tunnel(path)
        except (DBusError, OSError, TimeoutError):  # the daemon was killed meanwhile
            continue


def holds(installed: UserManager, number: int) -> bool:
    """Does systemd hold so many descriptors of the daemon's?"""
    return int(installed.property(UNIT, "NFileDescriptorStore")) == number


def test_killed_in_the_middle_of_anything(
    installed: UserManager, client: Client, namespace: MakeNamespace
) -> None:
    """A tunnel is whole or it isn't there, whatever was under way."""
    client.tunnels()
    generator = random.Random(4)
    spaces = {name: namespace() for name in ("one", "two", "three")}
    with changed_unit(installed):
        for _ in range(ROUNDS):
            stop = threading.Event()
            workers = [
                threading.Thread(target=change, args=(installed.address, inside, name, stop))
                for name, inside in spaces.items()
            ]
            for worker in workers:
                worker.start()
            time.sleep(generator.uniform(0.05, 0.5))  # the moment is what is tried
            stop.set()
            crash(installed)
            for worker in workers:
                worker.join()
            left = {name for name, path, _ in client.tunnels() if Seen.of(client, path)}
            for name, inside in spaces.items():
                assert set(inside.links()) == ({"lo", "wg0"} if name in left else {"lo"})
            assert_no_strays(installed, client)
            # systemd closes what it is told to drop a moment later.
            wait_for(
                partial(holds, installed, STORED * len(left)), "it holds what the tunnels need"
            )
