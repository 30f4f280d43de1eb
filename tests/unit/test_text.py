"""What is shown of text that others chose."""

import pytest

from wg4netnsd.text import printable, safe


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"wg0", "wg0"),
        ("Büro 東京".encode(), "Büro 東京"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"a\0b\x7f", r"a\x00b\x7f"),
        ("\x9b".encode(), r"\x9b"),
    ],
)
def test_text_of_others(raw: bytes, shown: str) -> None:
    text = raw.decode(errors="surrogateescape")
    assert safe(text) == printable(text) == shown
    shown.encode()


def test_lines() -> None:
    assert safe("one\n\ttwo\r") == "one\n\ttwo\\x0d"
    assert printable("one\n\ttwo\u2028") == "one\\x0a\\x09two\\u2028"
