"""Colours, on terminals that want them (https://no-color.org). The text says the same."""

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
"""States of tunnels, of peers and of the daemon. Others have no colour."""


def paint(text: str, colour: int | None) -> str:
    """Colour `text`, if standard output is to have colours."""
    return f"\x1b[{colour}m{text}\x1b[m" if colour and _wants_colours() else text


def _wants_colours() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain
