"""Started where signals are ignored or blocked: by nohup, in the background of a script, by some
supervisors."""

import contextlib
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import doctor
from support.bus import Bus, Client
from support.ctl import Ctl, ctl_with_office
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.processes import descendants, is_alive, wait_for
from support.stage import Stage

NOHUP = {signal.SIGHUP}
BACKGROUND = {signal.SIGINT, signal.SIGQUIT}
OTHERS = {
    signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
}  # fmt: skip
PYTHONS = {signal.SIGPIPE, signal.SIGXFSZ}


@contextlib.contextmanager
def ignored(numbers: set[signal.Signals], blocked: bool = False) -> Iterator[None]:
    """By us, and so by what we start meanwhile."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers if blocked else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


def signals(pid: int | str, which: str) -> set[int]:
    """SigIgn or SigBlk of proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(rf"^{which}:\s+(\w+)$", status, re.M)
    return {number for number in signal.Signals if int(mask, 16) >> number - 1 & 1}


# ---------------------------------------------------------------- the daemon


@pytest.fixture
def heedless() -> Iterator[Daemon]:
    """A daemon that was started with all of them ignored and blocked."""
    with tempfile.TemporaryDirectory(prefix="wg-") as path, contextlib.ExitStack() as stack:
        own_bus = Bus(Path(path))
        stack.callback(own_bus.close)
        with ignored(NOHUP | BACKGROUND | OTHERS, blocked=True):
            started = Daemon(own_bus, Path(path))
        yield started
        started.stop()


def test_a_daemon_goes_on_ignoring_what_its_starter_may_mean(heedless: Daemon) -> None:
    """As on a bus that was started by nohup, or in the background of a script: that goes on too."""
    for number in (*NOHUP, *BACKGROUND):
        heedless.process.send_signal(number)
        assert heedless.client.tunnels() == []
    assert heedless.process.poll() is None


def test_it_ends_when_it_is_told_to(heedless: Daemon) -> None:
    """And it collects its children; heedless.stop() looks at the status."""
    assert signals(heedless.pid, "SigIgn") == PYTHONS
    wait_for(lambda: signals(heedless.pid, "SigBlk") == set(), "but while it spawns an engine")


def test_the_programs_that_it_starts_ignore_nothing(
    heedless: Daemon, namespace: MakeNamespace, stage: Stage
) -> None:
    engine = heedless.client.get(heedless.client.create(namespace(), stage.conf(0)), "EnginePID")
    assert signals(engine, "SigIgn").isdisjoint(NOHUP | BACKGROUND | OTHERS)


# ---------------------------------------------------------------- wg4netnsctl


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        yield ctl


def test_nohup_holds_for_a_command(ctl: Ctl) -> None:
    with ignored(NOHUP):
        running = ctl.popen("run", "office", "--", "sh", "-c", "echo up; sleep 1000; echo no")
    with running:
        assert running.stdout and running.stdout.readline() == "up\n"
        processes = {running.pid, *descendants(running.pid)}
        running.send_signal(signal.SIGHUP)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 128 + signal.SIGTERM
    assert not any(map(is_alive, processes))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_tunnel_in_the_foreground(ctl: Ctl, client: Client, number: signal.Signals) -> None:
    """Ends by each that is not ignored."""
    with ignored({number}):
        running = ctl.popen("up", "--foreground", "office")
    wait_for(lambda: [state for *_, state in client.tunnels()] == ["up"], "the tunnel is up")
    assert signals(running.pid, "SigIgn") == PYTHONS | {number}
    ends = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM} - {number}
    running.send_signal(number)
    running.send_signal(ends.pop())
    running.communicate(timeout=10)
    assert running.returncode == 0


def test_a_monitor_in_the_background(ctl: Ctl) -> None:
    with ignored(BACKGROUND):
        running = ctl.popen("monitor")
    with running:
        assert running.stdout and "wg4netnsd is running" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        ctl.check("run", "office", "true")
        assert "added" in running.stdout.readline()
        running.terminate()


def test_doctor_hears_how_its_children_end(bus: Bus) -> None:
    """Where nobody waits for children, the kernel keeps no status (wait(2))."""
    env = {"DBUS_SESSION_BUS_ADDRESS": bus.address}
    assert doctor.ask("env", "--ignore-signal=CHLD", env=env) == doctor.ask(env=env)
