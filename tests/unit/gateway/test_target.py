"""Targets as text, and the header of the PROXY protocol."""

import socket

import pytest

from wg4netnsd.errors import InvalidArgs
from wg4netnsd.gateway.proxy_protocol import encode_header
from wg4netnsd.gateway.target import Target, family_of, parse_target, split_host_port


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("example.org:443", Target("example.org", 443)),
        ("192.0.2.1:53", Target("192.0.2.1", 53)),
        ("[2001:db8::1]:22", Target("2001:db8::1", 22)),
        ("unix:/run/db/socket", Target(path="/run/db/socket")),
    ],
)
def test_a_target_is_parsed_and_shown(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":80", "host:0", "host:65536", "host:٣", "host:1e3", "a b:80", "a/b:80",
     "2001:db8::1:22", "[2001:db8::1]", "[2001:db8::1]22", "[host]:22", "user@host:80", "unix:run",
     "unix:/" + "x" * 107, "unix:/a\0b", "hôte:80"],
)  # fmt: skip
def test_what_is_no_target_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidArgs, match="target"):
        parse_target(text)


def test_a_port_can_have_a_default() -> None:
    assert split_host_port("host", 80) == ("host", 80)
    assert split_host_port("[::1]", 80) == ("::1", 80)
    assert split_host_port("host:", 80) is None


def test_the_family_of_an_address() -> None:
    assert family_of("192.0.2.1") == socket.AF_INET
    assert family_of("::1") == socket.AF_INET6
    assert family_of("192.0.2") is family_of("example.org") is family_of("a\0b") is None


def test_the_header_is_that_of_the_specification() -> None:
    signature = bytes.fromhex("0d0a0d0a000d0a515549540a")
    v4 = encode_header(("198.51.100.1", 4660), ("198.51.100.11", 80))
    assert v4 == signature + bytes.fromhex("2111000cc6336401c633640b12340050")
    v6 = encode_header(("2001:db8::1", 4660), ("2001:db8::2", 80))
    assert v6[:16] == signature + bytes.fromhex("21210024")
    assert v6[16:] == (
        socket.inet_pton(socket.AF_INET6, "2001:db8::1")
        + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
        + bytes.fromhex("12340050")
    )
