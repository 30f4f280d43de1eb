"""A line on the terminal during a wait that takes noticeably long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from wg4netnsd.ctl.client import Progress

DELAY: Final = 0.5
"""Seconds until a wait is shown."""

_CLEAR_LINE: Final = "\r\x1b[K"


@contextmanager
def show(what: str) -> Iterator[Progress | None]:
    """Yield a callback for the wait; None if standard error is not a terminal. The line is cleared
    at the end."""
    if not sys.stderr.isatty():
        yield None
        return
    written = False

    def progress(seconds: float) -> float:
        nonlocal written
        if seconds < DELAY:
            return DELAY - seconds
        written = True
        sys.stderr.write(f"{_CLEAR_LINE}{what} … {seconds:.0f} s")
        sys.stderr.flush()
        return 1 - seconds % 1

    try:
        yield progress
    finally:
        if written:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
