"""Colours, on a terminal that wants them (https://no-color.org). Nothing is told by them alone."""

from __future__ import annotations

import os
import sys
from typing import Final

BOLD, FAINT = 1, 2
RED, GREEN, YELLOW = 31, 32, 33

OF_STATE: Final = {
    **dict.fromkeys(("up", "active", "running"), GREEN),
    **dict.fromkeys(("starting", "restarting", "stopping", "handshaking", "stale"), YELLOW),
    **dict.fromkeys(("failed", "error", "stopped"), RED),
}
"""Of a tunnel, of a peer, of the daemon; others have none."""


def paint(text: str, colour: int | None) -> str:
    """`text` in that colour on standard output."""
    return f"\x1b[{colour}m{text}\x1b[m" if colour and _are_wanted() else text


def _are_wanted() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain
