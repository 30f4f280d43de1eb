"""Where a user's files are; the XDG Base Directory Specification."""

from __future__ import annotations

import os


def directory(variable: str, default: str) -> str:
    """What the variable says; the default where that is nothing, or relative: not to be heeded."""
    path = os.environ.get(variable, "")
    return path if path.startswith("/") else os.path.expanduser(default)
