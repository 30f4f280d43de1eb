"""SOCKS 5, 4 and 4a, byte by byte: wg4netnsd/gateway/socks.py."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wg4netnsd.gateway import socks
from wg4netnsd.gateway.client_stream import Malformed
from wg4netnsd.gateway.socks import Command, Reply, Request

IPV4, IPV6 = b"\x01\xc6\x33\x64\x01", b"\x04" + bytes.fromhex("20010db8") + bytes(11) + b"\x01"
NAME = b"\x03\x0bexample.org"

CONNECT, TO_80 = Command.CONNECT, b"\x04\x01\x00\x50"

WHOLE: list[tuple[Callable[[bytes], Any], bytes, Any]] = [
    (socks.parse_methods, b"\x05\x02\x00\x02", b"\x00\x02"),
    (socks.parse_login, b"\x01\x03ann\x06secret", socks.Login(b"ann", b"secret")),
    (socks.parse_login, b"\x01\x00\x00", socks.Login(b"", b"")),
    (
        socks.parse_request,
        b"\x05\x01\x00" + IPV4 + b"\x01\xbb",
        Request(CONNECT, "198.51.100.1", 443),
    ),
    (
        socks.parse_request,
        b"\x05\x01\x00" + IPV6 + b"\x01\xbb",
        Request(CONNECT, "2001:db8::1", 443),
    ),
    (
        socks.parse_request,
        b"\x05\x03\x00" + NAME + b"\x00\x00",
        Request(Command.UDP_ASSOCIATE, "example.org", 0),
    ),
    (
        socks.parse_request_4,
        TO_80 + b"\xc6\x33\x64\x01ann\x00",
        Request(CONNECT, "198.51.100.1", 80),
    ),
    (
        socks.parse_request_4,
        TO_80 + b"\x00\x00\x00\x01\x00example.org\x00",
        Request(CONNECT, "example.org", 80),
    ),
]


@pytest.mark.parametrize(("parse", "data", "message"), WHOLE, ids=lambda each: repr(each)[:40])
def test_a_message_is_parsed_once_it_is_whole(
    parse: Callable[[bytes], Any], data: bytes, message: Any
) -> None:
    assert [parse(data[:length]) for length in range(len(data))] == [None] * len(data)
    assert parse(data) == (message, len(data))
    assert parse(data + b"more") == (message, len(data))


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (socks.parse_login, b"\x05"),
        (socks.parse_request, b"\x04\x01"),
        (socks.parse_request, b"\x05\x01\x00\x03\x00\x00\x50"),  # an empty name
        (socks.parse_request, b"\x05\x01\x00\x03\x02\xff\xfe\x00\x50"),
        (socks.parse_request, b"\x05\x01\x00\x03\x02a\n\x00\x50"),
        (socks.parse_request_4, b"\x04\x01\x00\x50\xc6\x33\x64\x01" + b"x" * 256),
        (socks.parse_request_4, b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"x" * 256),
        (socks.parse_request_4, b"\x04\x02\x00\x50\xc6\x33\x64\x01\x00"),
    ],
)
def test_what_can_never_become_a_message_is_refused_at_once(
    parse: Callable[[bytes], Any], data: bytes
) -> None:
    with pytest.raises(Malformed):
        parse(data)


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"\x05\x09\x00" + IPV4 + b"\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x01\x00\x02\x00\x00\x00", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ],
)
def test_what_we_do_not_serve_has_its_reply(data: bytes, reply: Reply) -> None:
    with pytest.raises(socks.Unsupported) as caught:
        socks.parse_request(data)
    assert caught.value.reply is reply


def test_replies_are_as_the_standards_have_them() -> None:
    assert socks.encode_method(socks.NO_ACCEPTABLE) == b"\x05\xff"
    assert socks.encode_reply(Reply.SUCCEEDED, "192.0.2.1", 80) == bytes.fromhex(
        "05000001c00002010050"
    )
    v6 = socks.encode_reply(Reply.HOST_UNREACHABLE, "2001:db8::1", 80)
    assert v6 == b"\x05\x04\x00" + IPV6 + b"\x00\x50"
    assert socks.encode_reply_4(True, "192.0.2.1", 80) == bytes.fromhex("005a0050c0000201")
    assert socks.encode_reply_4(True, "2001:db8::1", 80) == bytes.fromhex("005a005000000000")
    assert socks.encode_reply_4(False) == bytes.fromhex("005b000000000000")
    assert socks.encode_login_status(True) == b"\x01\x00"
    assert socks.encode_login_status(False)[1:] != b"\x00"


@given(st.sampled_from(["192.0.2.1", "2001:db8::1"]), st.integers(0, 65535), st.binary())
def test_a_datagram_comes_back_as_it_was(host: str, port: int, payload: bytes) -> None:
    assert socks.parse_datagram(socks.encode_datagram(host, port, payload)) == (host, port, payload)


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\1" + IPV4 + b"\0\1", b"\0\0\0" + NAME])
def test_no_datagram(data: bytes) -> None:
    with pytest.raises(Malformed):
        socks.parse_datagram(data)


PARSERS = [
    socks.parse_methods,
    socks.parse_login,
    socks.parse_request,
    socks.parse_request_4,
    socks.parse_datagram,
]


@given(st.sampled_from(PARSERS), st.binary(max_size=600))
def test_any_bytes_end_in_a_message_a_wait_or_a_refusal(
    parse: Callable[[bytes], Any], data: bytes
) -> None:
    for prefix in (
        b"",
        b"\x05\x01\x00",
        b"\x04\x01",
        b"\x01",
        TO_80 + b"\0\0\0\1",
    ):
        try:
            found = parse(prefix + data)
        except Malformed:
            continue
        if found and parse is not socks.parse_datagram:
            assert 0 < found[1] <= len(prefix + data)
        elif not found:
            assert len(prefix + data) < 9 + 2 * (socks.MAX_STRING + 1) + 5
