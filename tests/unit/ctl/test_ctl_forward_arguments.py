"""The arguments of `forward`, `publish` and `proxy`, as the options of AddForward."""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from wg4netnsd.ctl.forward_arguments import parse_forward, parse_listen, parse_proxy, parse_publish


def values(options: dict[str, tuple[str, Any]]) -> tuple[Any, ...]:
    return tuple(value for _, value in options.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:web:80", ("local", "tcp", ["127.0.0.1:8080"], "web:80")),
        ("tcp:8080:web:80", ("local", "tcp", ["127.0.0.1:8080"], "web:80")),
        ("udp:53:192.0.2.1:53", ("local", "udp", ["127.0.0.1:53"], "192.0.2.1:53")),
        ("0.0.0.0:80:web:80", ("local", "tcp", ["0.0.0.0:80"], "web:80")),
        ("localhost:80:web:80", ("local", "tcp", ["127.0.0.1:80"], "web:80")),
        ("[::1]:80:[2001:db8::1]:80", ("local", "tcp", ["[::1]:80"], "[2001:db8::1]:80")),
        ("0:[2001:db8::1]:80", ("local", "tcp", ["127.0.0.1:0"], "[2001:db8::1]:80")),
        ("/run/db:db:5432", ("local", "tcp", ["unix:/run/db"], "db:5432")),
        ("unix:/run/db:db:5432", ("local", "tcp", ["unix:/run/db"], "db:5432")),
    ],
)
def test_forward(text: str, expected: tuple[Any, ...]) -> None:
    assert values(parse_forward(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80:localhost:8080", ("remote", "tcp", ["80"], "localhost:8080")),
        ("udp:53:[::1]:5353", ("remote", "udp", ["53"], "[::1]:5353")),
        ("80:/run/web", ("remote", "tcp", ["80"], "unix:/run/web")),
        ("80:unix:/run/web", ("remote", "tcp", ["80"], "unix:/run/web")),
    ],
)
def test_publish(text: str, expected: tuple[Any, ...]) -> None:
    assert values(parse_publish(text)) == expected


def test_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert values(parse_proxy("1080")) == ("proxy", ["127.0.0.1:1080"])
    monkeypatch.chdir(tmp_path)
    assert parse_listen("unix:x") == parse_listen("./x") == f"unix:{tmp_path}/x"
    assert parse_listen("[::1]:1080") == "[::1]:1080"


@pytest.mark.parametrize("text", ["", "80", "80:web", "web:80", ":web:80", "80:web:", "80::80"])
def test_no_forward(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"expected"):
        parse_forward(text)


@pytest.mark.parametrize("text", ["", "80", "80:web", "web:80:web:80", "80:web:", "x:/run/web"])
def test_no_publish(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"expected"):
        parse_publish(text)


@pytest.mark.parametrize("text", ["", "here", "x"])
def test_no_address(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"expected"):
        parse_listen(text)
