"""What a signal does, as far as whoever started us has a say in it.

nohup(1) ignores SIGHUP for us; a shell without job control ignores SIGINT and SIGQUIT for what it
runs in the background, so that a terminal's Ctrl-C ends the script alone (POSIX, 2.11).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Final

_STARTERS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_PYTHONS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Which Python itself ignores, and resets in the programs that it starts."""


def catch(numbers: Iterable[signal.Signals], handler: Callable[..., object]) -> None:
    """Call `handler` at these; at those that are ignored, go on ignoring them."""
    for number in numbers:
        if not is_ignored(number):
            signal.signal(number, handler)


def is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) in (signal.SIG_IGN, _ignore)


def reset() -> None:
    """For a daemon: nothing is blocked, and nothing ignored but what its starter may want. The
    programs that it starts ignore nothing."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in _PYTHONS:
            signal.signal(number, _ignore if number in _STARTERS else signal.SIG_DFL)


@contextlib.contextmanager
def alarm(seconds: float, error: type[Exception]) -> Iterator[None]:
    """Raise `error` in the block after so long, also in a system call; for the main thread."""

    def ring(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ignore(*_: object) -> None:
    """Like SIG_IGN, which an exec would keep; a handler it resets (signal(7))."""
