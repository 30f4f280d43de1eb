"""The user's command: started, told what we are told, waited for.

    run ──fork──► init ──fork──► the command        init: process 1 of a new PID namespace
     ▲  SIGKILL ───►│                               (pid_namespaces(7)): when it ends, the kernel
     └── status ────┘                               ends all that is left in there

Whatever ends us ends init too (PR_SET_PDEATHSIG), and with it everything that the command has
started, wherever that has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Final, NoReturn

from wg4netnsd.ctl import mounts
from wg4netnsd.ctl.failure import NOT_EXECUTABLE, NOT_FOUND, NOT_STARTED, complain
from wg4netnsd.kernel.syscalls import PR_SET_PDEATHSIG, mount, prctl

_PASSED_ON: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_TERMINALS: Final = {signal.SIGINT, signal.SIGQUIT}
"""Which a terminal sends to all of its foreground; but SIGHUP to its session's leader alone."""

_SI_KERNEL: Final = 0x80  # asm-generic/siginfo.h: from the terminal, that is, and from nobody else


def replace(command: list[str], hint: str = "") -> NoReturn:
    """Become the command. `hint`: what to do if there is none."""
    _reset_signals()
    _reset_locale()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(command[0], command)
    except (FileNotFoundError, ValueError):  # the latter for an empty one
        _end(f"{command[0]}: there is no such command", NOT_FOUND, hint)
    except OSError as error:
        _end(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE)


def run(command: list[str], *, new_pids: bool) -> int:
    """Run the command as a child, or with `new_pids` beneath an init; return its exit status, 128
    and the signal's number where a signal ended it.

    `new_pids`: our next child will be the first in a PID namespace.
    """
    _reset_signals()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        _end_with_parent(ended)
        if new_pids:
            _be_init(command, mask)
        _start(command, mask)
    os.close(ended)
    return _attend(child)


def _end_with_parent(ended: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before that; in a new PID namespace getppid() is 0 in any case.
    os.set_blocking(ended, False)
    with contextlib.suppress(BlockingIOError):
        os.read(ended, 1)
        os._exit(NOT_STARTED)
    os.close(ended)


def _be_init(command: list[str], mask: set[int]) -> NoReturn:
    try:
        # Or /proc/self and all else there would be the old namespace's.
        mount("proc", "/proc", "proc")
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}", NOT_STARTED, "--share-pids does without it")
    mounts.look_anew()
    child = os.fork()
    if child == 0:
        _start(command, mask)
    os._exit(_attend(child))


def _start(command: list[str], mask: set[int]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    replace(command)


def _attend(child: int) -> int:
    """Pass signals on until the child ends, collecting others that end meanwhile; its status."""
    while True:
        told = signal.sigwaitinfo(_PASSED_ON | {signal.SIGCHLD})
        if told.si_signo == signal.SIGCHLD:
            for pid, status in _ended_children():
                if pid == child:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
        elif not _has_been_told(child, told):
            os.kill(child, told.si_signo)


def _has_been_told(child: int, told: signal.struct_siginfo) -> bool:
    """By its terminal, as of the same process group."""
    by_terminal = told.si_signo in _TERMINALS and told.si_code == _SI_KERNEL
    return by_terminal and os.getpgid(child) == os.getpgrp()


def _ended_children() -> list[tuple[int, int]]:
    """Their pids and wait statuses; one SIGCHLD may stand for several."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            ended.append(found)
    return ended


def _reset_signals() -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)


def _reset_locale() -> None:
    """Python sets LC_CTYPE where the locale is C (PEP 538); the command is to have what we had."""
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            os.environ.pop("LC_CTYPE", None)


def _end(text: str, status: int, hint: str = "") -> NoReturn:
    """Say why, and end this process, which may be a fork of another."""
    complain(text, hint)
    os._exit(status)
