"""Job control: the terminal's foreground when the command stops, continues and ends.

A command usually stays in our process group: so it can share a pipeline with others, and a
script's Ctrl-C reaches all of them. A shell with job control makes a group of its own and the
terminal's foreground. In a PID namespace it can't give the terminal back, because our group has no
number there; so we do it. We stop when the command stops, so that the shell which started us
notices (tcsetpgrp(3), credentials(7)).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


class Job:
    """The command as a job. Call its methods with SIGCONT and SIGTTOU blocked."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._had_terminal = False
        """When it stopped last, a process group of its own was in the foreground."""

    def is_separate(self) -> bool:
        """Does the command have a process group of its own?"""
        return os.getpgid(self._child) != os.getpgrp()

    def stop(self, number: int) -> None:
        """Stop by the signal that has stopped the command. Returns when we are continued.

        If our group is orphaned, so that nobody would continue it, SIGTSTP and its like don't stop
        us.
        """
        with _terminal() as terminal:
            foreground = os.tcgetpgrp(terminal)
            if foreground in (os.getpgid(self._child), os.getpgrp()):  # else we are in background
                self._had_terminal = foreground != os.getpgrp()
        os.kill(os.getpid(), number)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def resume(self) -> None:
        """Continue the command; in the foreground if it was there, and we are now."""
        if not self.is_separate():
            os.kill(self._child, signal.SIGCONT)
            return
        group = os.getpgid(self._child)
        with _terminal() as terminal:
            if self._had_terminal and os.tcgetpgrp(terminal) == os.getpgrp():
                os.tcsetpgrp(terminal, group)
        os.killpg(group, signal.SIGCONT)


def take_back() -> None:
    """Make our group the terminal's foreground if that is a group which has ended.

    Call it with SIGTTOU blocked, which would stop us in the background.
    """
    with _terminal() as terminal:
        foreground = os.tcgetpgrp(terminal)
        if foreground != os.getpgrp() and _has_ended(foreground):
            os.tcsetpgrp(terminal, os.getpgrp())


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    """Open the controlling terminal. An OSError ends the block: there is none, or it is gone."""
    terminal = -1  # EBADF
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        yield terminal
    if terminal >= 0:
        os.close(terminal)


def _has_ended(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
