"""What is waited for, on a terminal, once it has taken long enough to be wondered about."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from wg4netnsd.ctl.client import Waiting

QUIET: Final = 0.5
"""Seconds after which somebody wonders."""

_CLEAR_LINE: Final = "\r\x1b[K"


@contextmanager
def shown(what: str) -> Iterator[Waiting | None]:
    """Something to call meanwhile; None where nobody looks. Leaves the line as it was."""
    if not sys.stderr.isatty():
        yield None
        return
    written = False

    def waiting(seconds: float) -> float:
        nonlocal written
        if seconds < QUIET:
            return QUIET - seconds
        written = True
        sys.stderr.write(f"{_CLEAR_LINE}{what} … {seconds:.0f} s")
        sys.stderr.flush()
        return 1 - seconds % 1

    try:
        yield waiting
    finally:
        if written:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
