"""`wg4netnsctl run` as a job: of a shell with job control, of a script, of a pipeline."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.ctl import PROGRAM, Ctl, Terminal, ctl_with_office
from support.daemon import Daemon
from support.stage import Stage

pytestmark = pytest.mark.distribution

PIDS = pytest.mark.parametrize("pids", ["", "--share-pids"], ids=["own pids", "shared pids"])


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        yield ctl


@pytest.fixture
def shell(ctl: Ctl) -> Iterator[Terminal]:
    """An interactive shell on a terminal, and `run` is its function for wg4netnsctl."""
    with Terminal(["bash", "--norc", "-i"], ctl.environment) as terminal:
        terminal.type(f"PS1='out''er '; run() {{ '{PROGRAM}' run \"$@\"; }}\n")
        terminal.wait_screen("outer ")
        yield terminal
        terminal.type("exit 3\n")
        terminal.type("exit 3\n")  # the first warns of stopped jobs
        assert terminal.wait_status() == 3


@PIDS
def test_a_script_reads_the_terminal_after_a_shell(ctl: Ctl, pids: str) -> None:
    """The inner shell can't give the terminal back to a group that it can't see."""
    script = f"'{PROGRAM}' run {pids} office -- bash --norc -i; read answer; echo \"got $answer\""
    with Terminal(["bash", "-c", script], ctl.environment) as terminal:
        terminal.type("PS1='in''ner '\n")
        terminal.wait_screen("inner ")
        terminal.type("exit\n")
        terminal.wait_screen("exit")
        terminal.type("it\n")
        terminal.wait_screen("got it")
        assert terminal.wait_status() == 0


@PIDS
def test_control_z(shell: Terminal, pids: str) -> None:
    shell.type(f"run {pids} office -- sh -c 'echo rea''dy; read a; echo \"got $a\"'\n")
    shell.wait_screen("ready")
    shell.type("\x1a")
    shell.wait_screen("Stopped")
    shell.type("fg\n")
    shell.type("it\n")
    shell.wait_screen("got it")


@PIDS
@pytest.mark.parametrize("number", ["TSTP", "STOP"])
def test_a_command_that_stops_itself(shell: Terminal, pids: str, number: str) -> None:
    shell.type(f"run {pids} office -- sh -c 'kill -{number} $$; echo conti''nued'\n")
    shell.wait_screen("Stopped")
    shell.type("fg\n")
    shell.wait_screen("continued")


@PIDS
def test_a_shell_that_suspends_itself_has_the_terminal_again(shell: Terminal, pids: str) -> None:
    shell.type(f"run {pids} office -- bash --norc -i\n")
    shell.type("PS1='in''ner '\n")
    shell.wait_screen("inner ")
    shell.type("suspend\n")
    shell.wait_screen("Stopped")
    shell.type("fg\n")
    shell.type('read answer && echo "got $answer"\n')
    shell.type("it\n")
    shell.wait_screen("got it")
    shell.type("exit\n")


def test_an_editor_may_tidy_up_before_it_stops(shell: Terminal) -> None:
    """We stop after it, or the shell would take the terminal too early."""
    tidy = "trap \"sleep 0.2; echo ti''dy; trap - TSTP; kill -TSTP $$\" TSTP"
    shell.type(f"run office -- sh -c '{tidy}; echo rea''dy; while :; do :; done'\n")
    shell.wait_screen("ready")
    shell.type("\x1a")
    shell.wait_screen("Stopped")
    assert shell.screen.index("tidy\r\n") < shell.screen.index("Stopped")
    shell.type('kill %1; fg; echo "status $?"\n')
    shell.wait_screen("status 143")


def test_a_command_that_ignores_control_z_goes_on(shell: Terminal) -> None:
    shell.type("run office -- sh -c 'trap \"\" TSTP; echo rea''dy; read a; echo \"got $a\"'\n")
    shell.wait_screen("ready")
    shell.type("\x1a")
    shell.type("it\n")
    shell.wait_screen("got it")
    assert "Stopped" not in shell.screen


def test_in_the_background_it_leaves_the_terminal_alone(shell: Terminal) -> None:
    shell.type("run office -- true & wait; echo do''ne\n")
    shell.wait_screen("done")
    shell.type('read answer && echo "got $answer"\n')
    shell.type("it\n")
    shell.wait_screen("got it")


def test_control_c_ends_a_script_too(ctl: Ctl) -> None:
    """Both are in the terminal's foreground, as without us."""
    script = f"'{PROGRAM}' run office -- sh -c 'echo ready; exec sleep 1000'; echo next; sleep 1000"
    with Terminal(["bash", "-c", script], ctl.environment) as terminal:
        terminal.wait_screen("ready")
        terminal.type("\x03")
        assert terminal.wait_status() == -signal.SIGINT
        assert "next" not in terminal.screen


def test_a_pipeline_shares_the_terminal(ctl: Ctl) -> None:
    script = f"'{PROGRAM}' run office -- echo piped | sh -c 'cat; read a </dev/tty; echo got $a'"
    with Terminal(["bash", "-c", script], ctl.environment) as terminal:
        terminal.wait_screen("piped")
        terminal.type("it\n")
        terminal.wait_screen("got it")
        assert terminal.wait_status() == 0


@PIDS
def test_streams_that_the_command_closes_are_closed(ctl: Ctl, pids: str) -> None:
    script = "exec <&- >&-; exec sleep 1000"
    command = ["run", *pids.split(), "office", "--", "sh", "-c", script]
    running = ctl.popen(*command, stdin=subprocess.PIPE)
    assert running.stdin and running.stdout
    assert running.stdout.read() == ""
    with pytest.raises(BrokenPipeError):
        os.write(running.stdin.fileno(), b"x")
    running.terminate()
    running.communicate()
    assert running.returncode == 143
