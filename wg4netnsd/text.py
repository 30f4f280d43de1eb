"""Text that others chose, made safe to show.

An interface's name, an engine's line or a file's name may hold anything: bytes that are not UTF-8,
control characters that a terminal would obey, and line breaks. (Undecodable bytes are surrogates
here, as in os.fsdecode().)
"""

from __future__ import annotations

import re
from typing import Final

_UNSAFE: Final = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tab and newline, and surrogates, which UTF-8 cannot encode."""


def safe(text: str) -> str:
    """Return `text` with unsafe characters escaped; tabs and line breaks stay."""
    return _UNSAFE.sub(_escape, text)


def printable(text: str) -> str:
    """Return `text` as one line, with everything escaped that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(found: str | re.Match[str]) -> str:
    code = ord(found if isinstance(found, str) else found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
