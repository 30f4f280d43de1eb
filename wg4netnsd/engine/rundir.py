"""A tunnel's runtime directory, which holds its engine's socket and its resolv.conf."""

from __future__ import annotations

import contextlib
from pathlib import Path


def create(directory: Path) -> None:
    """Create a tunnel's directory, and the daemon's own above it in case somebody removed that."""
    for each in (directory.parent, directory):
        each.mkdir(mode=0o700, exist_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file of a tunnel, and the directory if it is empty then; neither need exist."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
