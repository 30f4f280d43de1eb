"""Running the user's command: start it, pass on signals, wait for it.

    run ──fork──► init ──fork──► the command        init: process 1 of a new PID namespace
     ▲  SIGKILL ───►│                               (pid_namespaces(7)): when it ends, the kernel
     └── status ────┘                               kills all other processes there

Whatever ends us ends init too (PR_SET_PDEATHSIG), and with it every process that the command has
started, however it has detached itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from wg4netnsd.ctl import mounts
from wg4netnsd.ctl.failure import DOCTOR, NOT_EXECUTABLE, NOT_FOUND, NOT_STARTED, complain
from wg4netnsd.kernel.syscalls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, mount, prctl

_PASSED_ON: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_TERMINALS: Final = {signal.SIGINT, signal.SIGQUIT}
"""Signals that a terminal sends to its whole foreground group; SIGHUP goes only to its session's
leader."""

_SI_KERNEL: Final = 0x80  # asm-generic/siginfo.h: sent by the kernel, here for the terminal


def replace(command: list[str], hint: str = "") -> NoReturn:
    """Become the command. `hint`: what to do if it is not found."""
    _reset_signals()
    _reset_locale()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(command[0], command)
    except (FileNotFoundError, ValueError):  # ValueError: its name is empty
        _end(f"{command[0]}: command not found", NOT_FOUND, hint)
    except OSError as error:
        _end(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE)


def run(command: list[str], *, new_pids: bool, enter_root: Callable[[], None] | None = None) -> int:
    """Run the command; return its exit status, or 128 plus the number of the signal that ended it.

    `new_pids`: our next child will be the first process of a PID namespace; it becomes its init,
    and the command is a child of that. `enter_root`: called by init instead of mounting /proc.
    """
    _reset_signals()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        _end_with_parent(ended)
        if new_pids:
            _be_init(command, mask, enter_root or _mount_proc)
        _start(command, mask)
    os.close(ended)
    return _attend(child)


def _end_with_parent(ended: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the prctl; in a new PID namespace getppid() is always 0.
    os.set_blocking(ended, False)
    with contextlib.suppress(BlockingIOError):
        os.read(ended, 1)
        os._exit(NOT_STARTED)
    os.close(ended)


def _mount_proc() -> None:
    """Cover the inherited /proc, which shows the processes of the old namespace."""
    try:
        mount("proc", "/proc", "proc")
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}", NOT_STARTED, "--share-pids works without it")
    mounts.reenter_directory()


def _be_init(command: list[str], mask: set[int], enter_root: Callable[[], None]) -> NoReturn:
    try:
        enter_root()
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}", NOT_STARTED, DOCTOR)
    child = os.fork()
    if child == 0:
        _start(command, mask)
    os._exit(_attend(child))


def _start(command: list[str], mask: set[int]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    prctl(PR_SET_DUMPABLE, 1)  # else /proc/self is root's, which _reset_locale() reads
    replace(command)


def _attend(child: int) -> int:
    """Pass signals on until the child ends; return its status. Reaps other children too."""
    while True:
        received = signal.sigwaitinfo(_PASSED_ON | {signal.SIGCHLD})
        if received.si_signo == signal.SIGCHLD:
            for pid, status in _reap_children():
                if pid == child:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
        elif not _got_it_too(child, received):
            os.kill(child, received.si_signo)


def _got_it_too(child: int, received: signal.struct_siginfo) -> bool:
    """Did the terminal send the signal to the child as well, as it is in our process group?"""
    by_terminal = received.si_signo in _TERMINALS and received.si_code == _SI_KERNEL
    return by_terminal and os.getpgid(child) == os.getpgrp()


def _reap_children() -> list[tuple[int, int]]:
    """The PIDs and wait statuses of ended children; one SIGCHLD may stand for several."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            ended.append(found)
    return ended


def _reset_signals() -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)


def _reset_locale() -> None:
    """Undo Python's setting of LC_CTYPE in the C locale (PEP 538): the command gets what we got."""
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            os.environ.pop("LC_CTYPE", None)


def _end(text: str, status: int, hint: str = "") -> NoReturn:
    """Complain and end this process, which may be a fork."""
    complain(text, hint)
    os._exit(status)
