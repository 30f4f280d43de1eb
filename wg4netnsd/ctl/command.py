"""Running the user's command: start it, pass on signals, wait for it.

    run ──fork──► init           process 1 of a new PID namespace (pid_namespaces(7)): when it ends,
     │ ▲ SIGKILL ──►│            the kernel kills all other processes there
     │ └── status ──┐
     └────fork──► the command    process 2 there, and our own child: so we see it stop, and end

Whatever ends us ends init too (PR_SET_PDEATHSIG), and with it every process that the command has
started, however it has detached itself. Without a PID namespace, it ends the command alone.

For job control we are the command's stand-in: it shares our process group until it makes one of its
own, and we stop when it stops (terminal.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from wg4netnsd.ctl import mounts, terminal
from wg4netnsd.ctl.failure import DOCTOR, NOT_EXECUTABLE, NOT_FOUND, NOT_STARTED, complain
from wg4netnsd.kernel.syscalls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, mount, prctl

_STOPS: Final = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_PASSED_ON: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    *_STOPS,
}
_AWAITED: Final = _PASSED_ON | {signal.SIGCHLD, signal.SIGCONT}
_FROM_TERMINAL: Final = {signal.SIGINT, signal.SIGQUIT, *_STOPS}
"""Signals that a terminal sends to a whole process group; SIGHUP goes only to its session's
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
    Raises KeyboardInterrupt if that was SIGINT.

    `new_pids`: our next child will be the first process of a PID namespace; it becomes its init.
    `enter_root`: called by init instead of mounting /proc.
    """
    _reset_signals()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    init = 0
    if new_pids:
        init = _start_init(enter_root or _mount_proc)
        mounts.reenter_directory()
    child = _fork()
    if child == 0:
        _start(command, mask)
    _let_go_of_streams()
    status = _attend(child)
    if init:
        os.kill(init, signal.SIGKILL)
        _wait(init)
    terminal.take_back()
    if status == -signal.SIGINT:
        raise KeyboardInterrupt
    return status if status >= 0 else 128 - status


def _fork() -> int:
    """fork(2), with a child that ends when we do."""
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # We may have ended before the prctl; in a new PID namespace getppid() is always 0.
        os.set_blocking(ended, False)
        with contextlib.suppress(BlockingIOError):
            os.read(ended, 1)
            os._exit(NOT_STARTED)
    os.close(ended)  # `alive` stays open for as long as we live
    return child


def _start_init(set_up: Callable[[], None]) -> int:
    """Fork init; return its PID once it has called `set_up`. Ends this process if that fails."""
    reader, writer = os.pipe()
    init = _fork()
    if init == 0:
        try:
            set_up()
        except OSError as error:
            _end(f"{error.filename}: {error.strerror}", NOT_STARTED, DOCTOR)
        _let_go_of_streams()
        os.write(writer, b"1")
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        while True:  # it gets the orphans
            signal.sigwait({signal.SIGCHLD})
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    os.close(writer)
    if not os.read(reader, 1):  # it has complained
        _wait(init)
        sys.exit(NOT_STARTED)
    os.close(reader)
    return init


def _mount_proc() -> None:
    """Cover the inherited /proc, which shows the processes of the old namespace."""
    try:
        mount("proc", "/proc", "proc")
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}", NOT_STARTED, "--share-pids works without it")


def _start(command: list[str], mask: set[int]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    prctl(PR_SET_DUMPABLE, 1)  # else /proc/self is root's, which _reset_locale() reads
    replace(command)


def _let_go_of_streams() -> None:
    """Leave standard input and output to the command: when it closes one, it is closed."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)


def _attend(child: int) -> int:
    """Pass signals on, and stop when the child stops, until it ends; return its exit code, as of
    os.waitstatus_to_exitcode()."""
    job = terminal.Job(child)
    while True:
        received = signal.sigwaitinfo(_AWAITED)
        number = signal.Signals(received.si_signo)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                job.stop(os.WSTOPSIG(status))
            elif pid:
                return os.waitstatus_to_exitcode(status)
        elif number == signal.SIGCONT:
            job.resume()
        elif received.si_code == _SI_KERNEL and number in _FROM_TERMINAL:
            if job.is_separate():  # else the terminal has sent it to the child as well
                os.killpg(os.getpgid(child), number)
        else:
            os.kill(child, number)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
