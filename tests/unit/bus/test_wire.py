"""Messages as bytes: cut from a stream in any pieces, and errors that others can read."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import jeepney
import pytest
from jeepney import HeaderFields, Parser

from support import rawbus
from support.rawbus import Raw, Values
from wg4netnsd.bus import codec, frames
from wg4netnsd.bus.codec import Message, MessageType, Variant


def message(
    signature: str = "s", body: tuple[object, ...] = ("x",), big: bool = False, path: str = "/a"
) -> bytes:
    fields = [(rawbus.PATH, "o", path), (rawbus.MEMBER, "s", "Member"), (7, "s", ":1.42")]
    return Raw(fields=fields, signature=signature, body=body, big_endian=big).data(7)


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    while data:
        size = rng.choice([1, 2, 15, 16, 17, 100, 5000, 60_000])
        yield data[:size]
        data = data[size:]


STREAM = [
    message(),
    message("ay", (bytes(frames.MAX_MESSAGE),)),
    message("", ()),
    message("s", ("y",), big=True),
    message("ay", (bytes(300_000),), big=True),
    message("u", (1,), path="/" + "x" * 100_000),
    message(),
]


@pytest.mark.parametrize("seed", range(50))
def test_a_stream_in_any_pieces(seed: int) -> None:
    """A descriptor comes with the first byte of the message that it belongs to."""
    reader, found = frames.FrameReader(), []
    for number, data in enumerate(STREAM):
        for nth, piece in enumerate(pieces(data, random.Random(seed))):
            found += reader.feed(piece, [number] if nth == 0 else [])
    assert [frame.length for frame in found] == [len(data) for data in STREAM]
    assert [frame.fds for frame in found] == [[number] for number in range(len(STREAM))]
    assert [frame.is_whole for frame in found] == [
        len(data) <= frames.MAX_MESSAGE for data in STREAM
    ]
    assert {(frame.sender, frame.member, frame.serial) for frame in found} == {
        (":1.42", "Member", 7)
    }


@pytest.mark.parametrize("seed", range(20))
def test_messages_that_come_together(seed: int) -> None:
    reader, found = frames.FrameReader(), []
    for piece in pieces(b"".join(STREAM), random.Random(seed)):
        found += reader.feed(piece, [])
    assert [frame.length for frame in found] == [len(data) for data in STREAM]


def test_descriptors_belong_to_the_last_message_that_begins() -> None:
    first, second = frames.FrameReader().feed(message() + message(), [3, 4])
    assert (first.fds, second.fds) == ([], [3, 4])
    reader = frames.FrameReader()
    (first,) = reader.feed(message() + message()[:20], [3])
    assert first.fds == []
    (second,) = reader.feed(message()[20:], [])
    assert second.fds == [3]


def test_descriptors_of_an_unfinished_message_can_be_dropped() -> None:
    reader = frames.FrameReader()
    assert reader.feed(message()[:20], [3, 4]) == []
    assert reader.pop_fds() == [3, 4]
    assert reader.pop_fds() == []


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("seed", range(200))
def test_fields_that_nobody_knows_are_ignored(seed: int, big: bool) -> None:
    """Of any type, and before those that we know; dbus-broker passes them on."""
    rng = random.Random(seed)
    values = Values(rng, ["", "a", "abcdefgh"])
    known = [(rawbus.PATH, "o", "/a"), (rawbus.MEMBER, "s", "Member"), (7, "s", ":1.42")]
    fields = list(known)
    for _ in range(rng.randint(1, 4)):
        signature = values.signature()
        unknown = (rng.randint(10, 255), signature, values.of(signature))
        fields.insert(rng.randint(0, len(fields)), unknown)
    data = Raw(fields=fields, signature="sv", body=("x", ("u", 7)), big_endian=big).data(7)
    (frame,) = frames.FrameReader().feed(data, [])
    assert (frame.path, frame.member, frame.sender) == ("/a", "Member", ":1.42")
    assert set(frame.fields) == {rawbus.PATH, rawbus.MEMBER, 7, rawbus.SIGNATURE}
    if frame.is_whole:
        assert codec.decode_body(frame) == ["x", Variant("u", 7)]


def test_a_field_of_another_type_than_its_own_is_ignored() -> None:
    fields = [(rawbus.PATH, "as", ["/a"]), (rawbus.MEMBER, "u", 7), (7, "s", ":1.42")]
    (frame,) = frames.FrameReader().feed(Raw(fields=fields).data(7), [])
    assert set(frame.fields) == {7}


def test_types_in_one_another_without_end_are_malformed() -> None:
    deep: tuple[str, Any] = ("y", 0)
    for _ in range(100):
        deep = ("v", deep)
    data = Raw(fields=[(77, *deep)]).data(7)
    with pytest.raises(frames.Malformed, match="in one another"):
        frames.FrameReader().feed(data, [])


def test_rubbish_is_malformed_or_a_message() -> None:
    rng, malformed = random.Random(1), 0
    for _ in range(10_000):
        data = bytearray(message("", ()))
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert len(frames.FrameReader().feed(bytes(data), [])) <= 1
        except frames.Malformed:
            malformed += 1
    assert 1000 < malformed < 9000


@pytest.mark.parametrize("text", ["", "LimitExceeded: 7", "é" * 1000])
@pytest.mark.parametrize("sender", [":1.4", ":1.42", ":1.4200000"])
def test_an_error_as_others_read_it(sender: str, text: str) -> None:
    (call,) = frames.FrameReader().feed(message(), [])
    call.sender = sender
    parser = Parser()
    for serial in (9, 10):  # made, and made from what is remembered
        call.serial = serial - 2
        parser.add_data(codec.encode_error(call, serial, "org.example.Error", text))
        parsed = parser.get_next_message()
        assert parsed.header.message_type is jeepney.MessageType.error
        assert parsed.header.serial == serial
        assert parsed.header.fields[HeaderFields.reply_serial] == serial - 2
    assert parsed.header.fields[HeaderFields.destination] == sender
    assert parsed.header.fields[HeaderFields.error_name] == "org.example.Error"
    assert parsed.body == (text,)


def test_a_repeated_error_is_what_dbus_next_would_make_of_it() -> None:
    """For every length that there is to pad."""
    (call,) = frames.FrameReader().feed(message(), [])
    for length, serial in itertools.product(range(1, 17), (1, 2, 0xFFFFFFFE)):
        call.sender, call.serial, name = ":1." + "4" * length, serial, f"i.{'i' * length}"
        made = Message(
            message_type=MessageType.ERROR,
            flags=codec.MessageFlag.NO_REPLY_EXPECTED,
            reply_serial=serial,
            destination=call.sender,
            error_name=name,
            signature="s",
            body=["t" * length],
            serial=serial + 1,
        )
        assert codec.encode_error(call, serial + 1, name, "t" * length) == codec.encode(made)


def test_a_message_as_we_and_others_read_it() -> None:
    """All of the header's fields, for every length that there is to pad."""
    for length in range(1, 17):
        path, interface, member = "/" + "p" * length, f"i.{'i' * length}", "m" * length
        signal = Message.new_signal(path, interface, member, "a{sv}", [{"k": Variant("q", 1)}])
        answer = Message(
            message_type=MessageType.METHOD_RETURN,
            reply_serial=length,
            destination=":1." + "4" * length,
            signature="h",
            body=[0],
            unix_fds=[0],
        )
        signal.serial, answer.serial = 7, 8
        data = codec.encode(signal) + codec.encode(answer)
        first, second = frames.FrameReader().feed(data, [3])
        assert (first.path, first.interface, first.member) == (path, interface, member)
        assert codec.decode_body(first) == [{"k": Variant("q", 1)}]
        assert (second.destination, second.reply_serial) == (":1." + "4" * length, length)
        assert (codec.decode_body(second), second.fds_lost) == ([0], False)
        assert (first.serial, second.serial) == (7, 8)
        parser = Parser()
        parser.add_data(data)
        others = parser.get_next_message()
        assert others.header.fields[HeaderFields.path] == path
        assert others.header.fields[HeaderFields.interface] == interface
        assert others.header.fields[HeaderFields.member] == member
        assert others.body == ({"k": ("q", 1)},)
