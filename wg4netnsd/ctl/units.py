"""Numbers for people."""

from __future__ import annotations

from typing import Final

_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def bytes_of(count: int) -> str:
    """Format a number of bytes as wg(8) does."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
