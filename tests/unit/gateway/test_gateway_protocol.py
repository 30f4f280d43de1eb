"""What daemon and gateway say to each other: wg4netnsd/gateway/protocol.py."""

import errno
import os
import socket

import pytest

from wg4netnsd.gateway import protocol as p

MESSAGES = [
    p.SetSockets((4, 4026531840)),
    p.SetResolvers(["10.9.0.1"], ["example"]),
    p.AddForward("1", "proxy", credentials={"ann": "00" * 32}),
    p.AddForward("2", "remote", "tcp", "unix:/run/web", [("10.9.0.2", 80)], proxy_protocol=True),
    p.RemoveForward("1"),
    p.GetCounters(),
]
ANSWERS = [
    p.Done(),
    p.ForwardAdded(["127.0.0.1:1080", "unix:/run/user/1000/proxy"]),
    p.AllCounters({"1": p.Counters(1, 2, 3, 4, 5, 6), "2": p.Counters()}),
    p.Refusal("InvalidArgs", "no target"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_request_arrives_as_it_was_sent(message: p.Request) -> None:
    assert p.decode_request(p.encode(message)) == message


@pytest.mark.parametrize("message", ANSWERS, ids=repr)
def test_an_answer_arrives_as_it_was_sent(message: p.Answer) -> None:
    assert p.decode_answer(p.encode(message)) == message


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"Done": {}}', b'{"RemoveForward": {}}', b'{"GetCounters": 1}',
     b'{"SetSockets": {"netns": [1]}}', b'{"AddForward": {"id": "1", "kind": "proxy", "x": 1}}',
     b"\xff", b'{"SetSockets": {"netns": 7}}'],
)  # fmt: skip
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  JSON's own, too
        p.decode_request(text)


def test_fds_travel_with_a_message_and_are_closed_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null") as null:
        p.send(ours, p.GetCounters(), [null.fileno(), null.fileno()])
        text, fds = p.receive(theirs)
        assert p.decode_request(text) == p.GetCounters()
        assert [os.path.realpath(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null"] * 2
        assert not any(map(os.get_inheritable, fds))
        p.close_all(fds)
        ours.close()
        assert p.receive(theirs) == (b"", [])


def test_a_message_that_is_too_large_is_lost_with_its_fds() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null") as null:
        before = sorted(os.listdir("/proc/self/fd"))
        p.send(ours, p.RemoveForward("x" * p.MAX_MESSAGE), [null.fileno()])
        with pytest.raises(OSError, match="control socket") as caught:
            p.receive(theirs)
        assert caught.value.errno == errno.EMSGSIZE
        assert sorted(os.listdir("/proc/self/fd")) == before
