"""`wg4netnsctl doctor` on a busy machine: slow answers are not problems."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from support.bus import Bus
from support.daemon import Daemon
from support.doctor import ask, problems

DELAY = 1.5
"""Seconds; longer than a busy machine delays an answer."""


@contextlib.contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    end = threading.Timer(DELAY, process.send_signal, [signal.SIGCONT])
    end.start()
    yield
    end.join()


def test_a_bus_that_takes_its_time(bus: Bus) -> None:
    with paused(bus.process):
        found = ask(env={"DBUS_SESSION_BUS_ADDRESS": bus.address})
    assert problems(found) == {"activation"}


def test_a_daemon_that_takes_its_time(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    with paused(daemon.process):
        found = ask(env={"DBUS_SESSION_BUS_ADDRESS": daemon.address})
    assert problems(found) == {"activation"}


def test_a_program_that_takes_its_time(tmp_path: Path) -> None:
    slow, busctl = tmp_path / "busctl", shutil.which("busctl")
    slow.write_text(f'#!/bin/sh\nsleep {DELAY}; exec {busctl} "$@"\n')
    slow.chmod(0o755)
    found = ask(env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert found["busctl"] == ask()["busctl"]
