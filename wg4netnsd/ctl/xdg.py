"""The directories of a user's files; XDG Base Directory Specification."""

from __future__ import annotations

import os


def directory(variable: str, default: str) -> str:
    """The variable's value, or the default: the specification ignores relative paths."""
    path = os.environ.get(variable, "")
    return path if path.startswith("/") else os.path.expanduser(default)
