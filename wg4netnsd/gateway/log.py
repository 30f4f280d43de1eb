"""The gateway's log: lines on stderr, which is the daemon's and so goes to the journal."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

TUNNEL: Final = "WG4NETNS_TUNNEL"
"""The variable of the gateway's environment that has its tunnel's name."""


def say(text: str) -> None:
    tunnel = os.environ.get(TUNNEL, "")
    who = f"wg4netns-gateway {tunnel}".rstrip()
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"{who}: {text}", file=sys.stderr, flush=True)
