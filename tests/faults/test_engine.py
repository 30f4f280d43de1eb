"""The engine's faults: the real wireguard-go ends, hangs, grows, or can't be started.

    fault ──► noticed ──► the old one is proven dead ──► a new one on the same TUN ──► handshake

The interface, its port and what is in the namespace stay all the time.
"""

import contextlib
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.bus import Client, DBusError
from support.daemon import SOON, Daemon
from support.fds import changed_package
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import is_alive, switches, wait_for
from support.stage import Stage
from support.transfer import Transfer
from wg4netnsd.engine.engine import BINARY

pytestmark = pytest.mark.long

MEMORY = 96 << 20
"""What an engine may have in `frugal`, in place of 1 GiB."""


@dataclass
class Up:
    """A tunnel with traffic in it, and its engine."""

    daemon: Daemon
    client: Client
    inside: Namespace
    path: str
    engine: int
    port: int

    @property
    def socket(self) -> Path:
        return self.daemon.directory / "struck/wg0.sock"


@pytest.fixture
def up(frugal: Daemon, namespace: MakeNamespace, stage: Stage) -> Iterator[Up]:
    client = frugal.client
    client.subscribe(member="StateChanged")
    inside = namespace()
    path = client.create(inside, stage.conf(0), name="struck")
    ping(inside, stage.far.ipv4)
    engine, port = client.get(path, "EnginePID"), client.get(path, "ListenPort")
    client.pending_signals()
    yield Up(frugal, client, inside, path, engine, port)
    client.close_tunnel(path)


@pytest.fixture(scope="module")
def frugal_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wg4netnsd with less patience for an engine's memory."""
    limits = "MAX_MEMORY: Final = 1 << 30", f"MAX_MEMORY: Final = {MEMORY}"
    return changed_package(tmp_path_factory.mktemp("frugal"), "tunnel/engine_slot.py", *limits)


@pytest.fixture
def frugal(start_daemon: Callable[..., Daemon], frugal_package: Path) -> Daemon:
    return start_daemon(PYTHONPATH=str(frugal_package.parent), PYTHONSAFEPATH="")


# ---------------------------------------------------------------- the faults


def killed(up: Up) -> None:
    """As by the kernel where memory is short."""
    os.kill(up.engine, signal.SIGKILL)


def told_to_end(up: Up) -> None:
    """It ends in order, and with status 0."""
    os.kill(up.engine, signal.SIGTERM)


def segmentation_fault(up: Up) -> None:
    """Go's runtime prints a traceback with arguments, and keys are among them."""
    os.kill(up.engine, signal.SIGSEGV)


def aborted(up: Up) -> None:
    os.kill(up.engine, signal.SIGABRT)


def grows(up: Up) -> None:
    """By thousands of peers, each of which costs it some 10 kB."""
    with contextlib.suppress(ConnectionError):  # a busy one is ended before it has them all
        for _ in range(60):  # while it takes some, it answers nobody else
            if not is_alive(up.engine):
                break  # or its successor would grow, too
            with socket.socket(socket.AF_UNIX) as uapi:
                uapi.connect(str(up.socket))
                peers = "".join(f"public_key={os.urandom(32).hex()}\n" for _ in range(100))
                uapi.sendall(f"set=1\n{peers}\n".encode())
                assert uapi.recv(100) in (b"errno=0\n\n", b"")


@pytest.mark.parametrize(
    ("fault", "seconds", "error"),
    [
        pytest.param(fault, seconds, error, id=fault.__name__.replace("_", "-"))
        for fault, seconds, error in [
            (killed, SOON, "EngineFailed: wireguard-go ended by signal SIGKILL"),
            (told_to_end, SOON, "EngineFailed: wireguard-go ended with status 0"),
            (
                segmentation_fault,
                SOON,
                "EngineFailed: wireguard-go ended with status 2: SIGSEGV: ",
            ),
            (aborted, SOON, "EngineFailed: wireguard-go ended with status 2: SIGABRT: "),
            (grows, 5 + SOON, "EngineFailed: wireguard-go uses "),
        ]
    ],
)
def test_the_engine_is_replaced(
    up: Up, stage: Stage, fault: Callable[[Up], None], seconds: float, error: str
) -> None:
    with Transfer(up.inside, stage.far.ipv4, stage.far.echo_port) as transfer:
        transfer.wait_for_progress()
        fault(up)
        restarting = up.client.next_signal("StateChanged", timeout=seconds, path=up.path)
        assert restarting.body[:2] == ("restarting", "up")
        assert restarting.body[2].startswith(error)
        assert not is_alive(up.engine)
        back = up.client.next_signal("StateChanged", timeout=SOON, path=up.path)
        assert back.body == ("up", "restarting", "the engine is back")
        begin = time.monotonic()
        ping(up.inside, stage.far.ipv4)  # which waits for the handshake, begun by itself
        assert time.monotonic() - begin < SOON
        transfer.wait_for_progress()
        transfer.finish()
    shown = up.client.get_all(up.path)
    assert shown["EnginePID"] != up.engine
    assert (shown["ListenPort"], shown["RestartCount"]) == (up.port, 1)
    assert shown["LastError"][1].startswith(error)
    assert "goroutine" not in shown["LastError"][1] + up.daemon.log


def test_an_engine_without_traffic_is_never_woken(
    frugal: Daemon, namespace: MakeNamespace, stage: Stage
) -> None:
    """Neither by the daemon, which looks every 5 s, nor by Go's runtime, which would do so each
    minute."""
    path = frugal.client.create(namespace(), stage.conf(0))
    pid = frugal.client.get(path, "EnginePID")

    def rests(seconds: float) -> bool:
        before = switches(pid)
        time.sleep(seconds)
        return switches(pid) == before

    wait_for(lambda: rests(6), "the first check is over", 60)
    assert rests(62)
    # One that is stopped does nothing either, and is asked all the same.
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: frugal.client.get(path, "RestartCount") == 1, "it is replaced", 20)


def test_calls_meet_an_engine_that_hangs(
    frugal: Daemon, namespace: MakeNamespace, stage: Stage
) -> None:
    """Those that need its answer fail in time; those that end it do so at once. One that nobody
    calls is found by the daemon, which looks every 5 s and waits 10 s for an answer."""
    spaces = [namespace() for _ in range(5)]
    paths = [frugal.client.create(each, stage.conf(n)) for n, each in enumerate(spaces)]
    left_alone, changed, restarted, closed, asked = paths
    for path in paths:
        os.kill(frugal.client.get(path, "EnginePID"), signal.SIGSTOP)
    answers: dict[str, str] = {}

    def call(path: str, member: str, *arguments: object) -> None:
        with Client(frugal.address) as client:
            try:
                client.tunnel(path, member, *arguments)
                answers[member] = ""
            except DBusError as error:
                answers[member] = error.short_name

    conf = frugal.runtime.parent / "changed.conf"
    conf.touch(0o600)
    conf.write_text(stage.conf(1, MTU="1300"))
    waiting = [
        threading.Thread(target=call, args=(asked, "GetPeers")),
        threading.Thread(
            target=call, args=(changed, "ReconfigureFromPath", "sa{sv}", str(conf), {})
        ),
    ]
    for thread in waiting:
        thread.start()
    begin = time.monotonic()
    call(restarted, "Restart")
    call(closed, "Close")
    assert time.monotonic() - begin < SOON
    for thread in waiting:
        thread.join()
    assert answers["Restart"] == answers["Close"] == ""
    assert answers["GetPeers"] == "Timeout"
    assert answers["ReconfigureFromPath"] in ("Timeout", "EngineFailed")
    for path in (left_alone, changed, restarted, asked):
        wait_for(lambda path=path: frugal.client.get(path, "RestartCount") == 1, "a new one", 20)
        assert frugal.client.get(path, "State") == "up"
    _, message = frugal.client.get(left_alone, "LastError")
    assert message == "Timeout: the engine gave no answer within 10 s"
    ping(spaces[0], stage.far.ipv4)
    for path in (left_alone, changed, restarted, asked):
        frugal.client.close_tunnel(path)


# ---------------------------------------------------------------- it can't be started


def test_a_crash_loop_ends_in_failed_and_restart_ends_that(
    start_daemon: Callable[..., Daemon],
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
) -> None:
    secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
    broken = tmp_path / "broken"
    program = tmp_path / "engine"
    program.write_text(
        f'#!/bin/sh\n[ -e {broken} ] || exec {BINARY} "$@"\n'
        f"echo ERROR: the key {secret} is of no use >&2\nexit 3\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    daemon = start_daemon("--engine", str(program))
    inside = namespace()
    path = daemon.client.create(inside, stage.conf(0))
    before = inside.ip("address", "show"), inside.ip("route", "show")
    broken.touch()
    for engine in daemon.engines():  # the one that waits too
        os.kill(engine, signal.SIGKILL)
    daemon.client.tunnel(path, "WaitForState", "ast", ["failed"], 30_000_000)

    name, message = daemon.client.get(path, "LastError")
    assert name == "org.wg4netns1.Error.EngineFailed"
    assert message.endswith("ended with status 3: ERROR: the key … is of no use")
    assert secret not in daemon.log
    assert daemon.client.get(path, "EnginePID") == 0
    assert (inside.ip("address", "show"), inside.ip("route", "show")) == before
    # Nothing leaves in the clear while there is no engine.
    assert inside.run("ping", "-n", "-c1", "-W1", stage.far.ipv4).returncode == 1

    broken.unlink()
    daemon.client.tunnel(path, "Restart")
    assert daemon.client.get(path, "State") == "up"
    ping(inside, stage.far.ipv4)
    daemon.client.close_tunnel(path)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        pytest.param(None, 0, "No such file or directory", id="missing"),
        pytest.param(b"#!/bin/sh\n", 0o600, "Permission denied", id="not executable"),
        pytest.param(b"no program\n", 0o700, "Exec format error", id="no program"),
        pytest.param(b"#!/bin/true\n", 0o700, "ended with status 0", id="does nothing"),
    ],
)
def test_a_program_that_is_none(
    start_daemon: Callable[..., Daemon],
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
    content: bytes | None,
    mode: int,
    message: str,
) -> None:
    """The daemon starts, and says what is wrong with the program to who wants a tunnel."""
    program = tmp_path / "engine"
    if content is not None:
        program.write_bytes(content)
        program.chmod(mode)
    daemon = start_daemon("--engine", str(program))
    inside = namespace()
    with pytest.raises(DBusError, match=message) as refused:
        daemon.client.create(inside, stage.conf(0))
    assert refused.value.short_name == "EngineFailed"
    assert daemon.client.tunnels() == []
    assert set(inside.links()) == {"lo"}
