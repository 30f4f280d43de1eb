"""The configuration protocol: what is said to the engine, and what its answers may do to us."""

import asyncio
import base64
import contextlib
import tempfile
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wg4netnsd.config.model import Endpoint
from wg4netnsd.config.wgquick import parse
from wg4netnsd.engine import uapi
from wg4netnsd.engine.uapi import DeviceStatus, PeerStatus, encode_change, encode_set, parse_get
from wg4netnsd.errors import EngineFailed, Error, Timeout

PRIVATE, PRESHARED, PUBLIC, PUBLIC2 = (bytes([seed]) * 32 for seed in range(1, 5))


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


CONFIG = parse(
    f"""
    [Interface]
    PrivateKey = {b64(PRIVATE)}
    Address = 10.0.0.2/24
    [Peer]
    PublicKey = {b64(PUBLIC)}
    PresharedKey = {b64(PRESHARED)}
    AllowedIPs = 0.0.0.0/0, fd00::/8
    Endpoint = vpn.example.org:51820
    PersistentKeepalive = 25
    [Peer]
    PublicKey = {b64(PUBLIC2)}
    """.encode()
)


# ---------------------------------------------------------------- pure


def test_one_set_says_it_all() -> None:
    endpoints = {b64(PUBLIC): Endpoint("2001:db8::2", 51820)}
    text = encode_set(CONFIG, mtu=1380, endpoints=endpoints).decode()
    assert text.endswith("\n\n")
    assert text.split() == [
        "set=1",
        f"private_key={PRIVATE.hex()}",
        "mtu=1380",
        "replace_peers=true",
        f"public_key={PUBLIC.hex()}",
        f"preshared_key={PRESHARED.hex()}",
        "endpoint=[2001:db8::2]:51820",
        "replace_allowed_ips=true",
        "allowed_ip=0.0.0.0/0",
        "allowed_ip=fd00::/8",
        "persistent_keepalive_interval=25",
        f"public_key={PUBLIC2.hex()}",
        "replace_allowed_ips=true",
        "persistent_keepalive_interval=0",
    ]


def test_what_is_unknown_is_left_to_the_engine() -> None:
    text = encode_set(CONFIG, mtu=1420, endpoints={}).decode()
    assert "listen_port" not in text
    assert "endpoint" not in text


def test_a_change_says_what_is_different_and_no_more() -> None:
    """The networks of a peer that stays one by one: it is never without those that it keeps. What
    goes, goes last: its networks are others' by then."""
    third = bytes([5]) * 32
    new = parse(
        f"""
        [Interface]
        PrivateKey = {b64(PRIVATE)}
        Address = 10.0.0.2/24
        [Peer]
        PublicKey = {b64(PUBLIC)}
        AllowedIPs = 0.0.0.0/0, 10.1.0.0/16
        Endpoint = 192.0.2.7:1
        PersistentKeepalive = 25
        [Peer]
        PublicKey = {b64(third)}
        AllowedIPs = fd00::/8
        """.encode()
    )
    endpoints = {b64(PUBLIC): "192.0.2.7:1"}
    text = encode_change(CONFIG, new, mtu=1300, endpoints=endpoints).decode()
    assert text.split() == [
        "set=1",
        "mtu=1300",
        f"public_key={PUBLIC.hex()}",
        f"preshared_key={'00' * 32}",
        "endpoint=192.0.2.7:1",
        "allowed_ip=10.1.0.0/16",
        f"public_key={third.hex()}",
        "replace_allowed_ips=true",
        "allowed_ip=fd00::/8",
        "persistent_keepalive_interval=0",
        f"public_key={PUBLIC2.hex()}",
        "remove=true",
    ]
    back = encode_change(new, CONFIG, mtu=1420, endpoints={}).decode()
    assert f"private_key={PRIVATE.hex()}" not in back
    assert "allowed_ip=-10.1.0.0/16" in back.split()
    assert encode_change(CONFIG, CONFIG, mtu=1420, endpoints={}).decode().split() == [
        "set=1",
        "mtu=1420",
        f"public_key={PUBLIC.hex()}",
        f"public_key={PUBLIC2.hex()}",
    ]


def test_an_answer_is_read_without_its_secrets() -> None:
    status = parse_get(
        "\n".join(
            [
                f"private_key={PRIVATE.hex()}",
                f"own_public_key={PUBLIC2.hex()}",
                "listen_port=51821",
                "a_later_key=1",
                f"public_key={PUBLIC.hex()}",
                f"preshared_key={PRESHARED.hex()}",
                "protocol_version=1",
                "endpoint=192.0.2.2:51820",
                "last_handshake_time_sec=1700000000",
                "last_handshake_time_nsec=123456789",
                "tx_bytes=4294967296",
                "rx_bytes=92",
                "persistent_keepalive_interval=25",
                "allowed_ip=0.0.0.0/0",
                "allowed_ip=fd00::/8",
                f"public_key={PUBLIC2.hex()}",
                "",
            ]
        ).encode()
    )
    assert status == DeviceStatus(
        public_key=b64(PUBLIC2),
        listen_port=51821,
        peers=[
            PeerStatus(
                public_key=b64(PUBLIC),
                endpoint="192.0.2.2:51820",
                last_handshake_usec=1_700_000_000_123_456,
                rx_bytes=92,
                tx_bytes=1 << 32,
                persistent_keepalive=25,
                allowed_ips=["0.0.0.0/0", "fd00::/8"],
            ),
            PeerStatus(public_key=b64(PUBLIC2)),
        ],
    )
    for secret in (PRIVATE, PRESHARED):
        assert b64(secret) not in repr(status)
        assert secret.hex() not in repr(status)


def test_no_peers_and_no_port() -> None:
    assert parse_get(b"") == DeviceStatus()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"listen_port", id="no-equals-sign"),
        pytest.param(b"listen_port=x", id="no-number"),
        pytest.param(b"public_key=xyz", id="no-key"),
        pytest.param(b"listen_port=1\n\nlisten_port=2", id="an-empty-line"),
        pytest.param(f"public_key={PUBLIC.hex()}\nrx_bytes=".encode(), id="no-counter"),
        pytest.param(b"endpoint=\xff", id="not-ascii"),
    ],
)
def test_no_answer_of_the_protocols(answer: bytes) -> None:
    with pytest.raises(EngineFailed, match="status is malformed"):
        parse_get(answer)


lines = st.tuples(
    st.sampled_from(
        [
            *("private_key", "own_public_key", "public_key", "listen_port", "endpoint"),
            *("rx_bytes", "last_handshake_time_sec", "allowed_ip", "errno", "x", ""),
        ]
    ),
    st.sampled_from(["=", "", "=="]),
    st.sampled_from([PUBLIC.hex(), "0", "-1", "9" * 5000, "²", "\0"]) | st.text(max_size=5),
).map("".join)


@given(st.binary() | st.lists(lines).map("\n".join).map(str.encode))
def test_any_answer_is_a_status_or_engine_failed(answer: bytes) -> None:
    try:
        status = parse_get(answer)
    except EngineFailed:
        return
    assert isinstance(status, DeviceStatus)


# ---------------------------------------------------------------- the client

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ask(answer: Answer | None) -> bytes:
    """What uapi.request() makes of an engine that answers so."""

    async def exchange(directory: str) -> bytes:
        path = f"{directory}/wg0.sock"
        if answer is None:
            return await uapi.request(path, uapi.GET)
        async with await asyncio.start_unix_server(answer, path):
            return await uapi.request(path, uapi.GET)

    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        return asyncio.run(exchange(directory))


def says(*parts: bytes) -> Answer:
    """Hears the request out, answers in these parts, hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            assert await reader.readuntil(b"\n\n") == uapi.GET
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)  # so that it arrives as a part

    return answer


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        await reader.read()  # returns when the client has given up


async def without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"rx_bytes=1\n" * 100)
            await writer.drain()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(says(b"errno=0\n\n"), b"", id="at-once"),
        pytest.param(says(b"listen_port=1\nerr", b"no=0\n", b"\n"), b"listen_port=1\n", id="parts"),
        pytest.param(
            says(b"rx_bytes=1\n" * 50_000 + b"errno=0\n\n"), b"rx_bytes=1\n" * 50_000, id="long"
        ),
    ],
)
def test_an_answer(answer: Answer, body: bytes) -> None:
    assert ask(answer) == body


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        pytest.param(None, EngineFailed, "can't be reached: No such file", id="nobody-listens"),
        pytest.param(never, Timeout, "no answer within 0.2 s", id="never"),
        pytest.param(says(b"errno=0\n", b""), EngineFailed, "cut off", id="breaks-off"),
        pytest.param(says(), EngineFailed, "cut off", id="hangs-up"),
        pytest.param(says(b"\n\n"), EngineFailed, "has no errno", id="empty"),
        pytest.param(says(b"\xff\0rubbish\n\n"), EngineFailed, "has no errno", id="rubbish"),
        pytest.param(says(b"errno=zero\n\n"), EngineFailed, "has no errno", id="errno-no-number"),
        pytest.param(
            says(b"errno=-22\n\n"),
            EngineFailed,
            "refused its configuration: Invalid argument",
            id="refused",
        ),
        pytest.param(without_end, (EngineFailed, Timeout), "the engine", id="without-end"),
    ],
)
def test_no_answer_has_its_error(
    answer: Answer | None,
    error: type[Error] | tuple[type[Error], ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uapi, "REPLY_TIME", 0.2)
    with pytest.raises(error, match=message):
        ask(answer)


@pytest.mark.parametrize(
    ("answers", "heard"),
    [
        pytest.param([b"errno=0\n\n", b"listen_port=1\nerrno=0\n\n"], 2, id="both-taken"),
        pytest.param([b"errno=-22\n\n"], 1, id="first-refused"),
    ],
)
def test_what_follows_a_refused_set_is_not_said(answers: list[bytes], heard: int) -> None:
    """The engine would take the rest of it for commands."""
    requests = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            for each in answers:
                requests.append(await reader.readuntil(b"\n\n"))
                writer.write(each)
            requests.append(await reader.readuntil(b"\n\n"))

    async def exchange(directory: str) -> bytes:
        path = f"{directory}/wg0.sock"
        async with await asyncio.start_unix_server(answer, path):
            return await uapi.request(path, b"set=1\n\n", uapi.GET)

    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        if heard == 2:
            assert asyncio.run(exchange(directory)) == b"listen_port=1\n"
        else:
            with pytest.raises(EngineFailed, match="refused its configuration"):
                asyncio.run(exchange(directory))
    assert requests == [b"set=1\n\n", uapi.GET][:heard]
