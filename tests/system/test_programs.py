"""docs/programs.md: each line of its tables, in `run` and in `exec`, by its very text."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.manager import installed, user_manager
from support.processes import wait_for
from support.programs import Line, Place, lines
from support.stage import Stage

pytestmark = [pytest.mark.long, pytest.mark.distribution]

WORKS = lines("## What works")
DOES_NOT = lines("## What does not")
NOT_IN_RUN = lines("In `run` there is a PID namespace")
LEADS_OUT = lines("## What leads out")

BROWSERS = {"chromium", "firefox-esr"}

SERVER = "{} & until curl --silent --fail http://localhost/; do sleep 0.1; done; kill $!"
"""For a command that serves until it is ended."""

WHY = {
    "tcpdump -c 1 -i wg0": "permission",
    "traceroute -T intranet.example": "privileges|not permitted",
    "ip address add 10.0.0.1/32 dev lo": "not permitted",
    "sshfs intranet.example: mnt": "fusermount3: mount failed: Operation not permitted",
    "sudo true": "uid 0|setuid",
    "rootlesskit true": "newuidmap",
    "curl http://localhost:8000/": "refused|connect to server",
    "DISPLAY=localhost:10 xterm": "ConnectionRefused",
    "DBUS_SESSION_BUS_ADDRESS=unix:abstract=/tmp/bus busctl --user list": "Connection refused",
    "keyctl search @u user lasting": "Required key not available",
    "systemd-run --user true": "No data available",
    "systemd-run --user --scope true": "",
}
"""What is in the error, so that it is this reason for which the command fails."""


@pytest.fixture(scope="module")
def session(
    stage: Stage, bus_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with user_manager(bus_program) as manager, installed(manager):
        made = Place(tmp_path_factory.mktemp("place"), Path(stage.unpacked))
        yield made
        made.close()


@pytest.fixture
def place(session: Place) -> Place:
    session.clear()
    return session


@pytest.mark.parametrize("how", ["run", "exec"])
@pytest.mark.parametrize("line", WORKS, ids=lambda line: line.command)
def test_it_works(place: Place, line: Line, how: str) -> None:
    program, *_ = line.command.split()
    if program in BROWSERS and not shutil.which(program):
        pytest.skip("browsers are large: scripts/test --long installs them")
    serves = "http.server" in line.command
    before = place.displays
    done = place.run_within(how, SERVER.format(line.command) if serves else line.command)
    assert done.returncode == 0, done.stdout + done.stderr + place.log()
    if "xterm" in line.command:
        wait_for(lambda: place.displays > before, "it has asked the X server")
    if program == "firefox-esr":
        assert "Sandbox: using seccomp" in done.stderr
    if program == "chromium":
        assert "<title>Directory listing for /</title>" in done.stdout


@pytest.mark.parametrize("how", ["run", "exec"])
@pytest.mark.parametrize("line", DOES_NOT, ids=lambda line: line.command)
def test_it_does_not_work(place: Place, line: Line, how: str) -> None:
    assert_refused(place, line, how)


@pytest.mark.parametrize("line", NOT_IN_RUN, ids=lambda line: line.command)
def test_it_does_not_work_in_run(place: Place, line: Line) -> None:
    assert_refused(place, line, "run")
    done = place.run_within("exec", line.command)
    assert done.returncode == 0, done.stderr


WORK_OUTSIDE = [
    line for line in DOES_NOT if line.command.startswith(("curl", "DISPLAY", "DBUS", "keyctl"))
]


@pytest.mark.parametrize("line", WORK_OUTSIDE, ids=lambda line: line.command)
def test_it_works_outside(place: Place, line: Line) -> None:
    done = place.run(line.command)
    assert done.returncode == 0, done.stderr


def assert_refused(place: Place, line: Line, how: str) -> None:
    done = place.run_within(how, line.command)
    assert done.returncode != 0
    assert re.search(WHY[line.command], done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [line for line in DOES_NOT + NOT_IN_RUN if line.instead],
    ids=lambda line: line.command,
)
def test_what_to_do_instead(place: Place, line: Line) -> None:
    before = place.displays
    done = place.run(line.instead)
    assert done.returncode == 0, done.stdout + done.stderr + place.log()
    if "xterm" in line.command:
        wait_for(lambda: place.displays > before, "it has asked the X server")


@pytest.mark.parametrize("how", ["run", "exec"])
@pytest.mark.parametrize("line", LEADS_OUT, ids=lambda line: line.command)
def test_it_leads_out(place: Place, line: Line, how: str) -> None:
    seen = place.work / "seen"
    seen.unlink(missing_ok=True)
    if "tmux" in line.command:
        assert place.run("tmux new-session -d -s outside 'sleep 1000'").returncode == 0
    try:
        done = place.run_within(how, line.command)
        assert done.returncode == 0, done.stderr
        printed = done.stdout or wait_for(lambda: seen.exists() and seen.read_text(), "it has run")
    finally:
        place.run("tmux kill-server")
    assert printed.strip() == os.readlink("/proc/self/ns/net")


def test_each_reason_is_of_a_line() -> None:
    assert set(WHY) == {line.command for line in DOES_NOT + NOT_IN_RUN}
