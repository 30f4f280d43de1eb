"""A tunnel's own directory at run time: its engine's socket is in it, and its resolv.conf."""

from __future__ import annotations

import contextlib
from pathlib import Path


def create(directory: Path) -> None:
    """Make it, and that of all tunnels: somebody may have removed ours."""
    for each in (directory.parent, directory):
        each.mkdir(mode=0o700, exist_ok=True)


def remove_file(path: Path) -> None:
    """Remove what is in it, and with the last of that the directory; neither need be there."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
