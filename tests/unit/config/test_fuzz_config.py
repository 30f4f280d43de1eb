"""Tens of thousands of configurations, most of them wrong.

A mutator with a fixed seed makes them from valid ones, by what people and programs do to such
files: lines lost, doubled, swapped and cut, values of other keys, odd bytes. It is not guided by
coverage. What it makes is valid often enough to get to the end; hypothesis adds what has no
likeness to a configuration, and shrinks what fails.
"""

import base64
import os
import random
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.depth import depth
from wg4netnsd.config.foreign import IGNORABLE
from wg4netnsd.config.model import Config
from wg4netnsd.config.wgquick import MAX_SIZE, parse
from wg4netnsd.engine import uapi
from wg4netnsd.errors import Error, InvalidConfig, LimitExceeded

MUTANTS = depth(20_000, 98_000)
OF_HYPOTHESIS = depth(500, 2_000)
SEED = int(os.environ.get("WG_FUZZ_SEED", "20250607"))
MAX_TEXT = 400  # characters of an error; the longest has two values of 60, quoted

PRIVATE, PRESHARED, PUBLIC, PUBLIC2 = (
    base64.b64encode(random.Random(n).randbytes(32)).decode() for n in range(4)
)
SECRETS = [PRIVATE, PRESHARED]

VALID = [
    f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/24\n",
    f"""[Interface]
PrivateKey = {PRIVATE}
Address = 10.0.0.2/24, fd00::2/64
ListenPort = 51820
DNS = 10.0.0.1, lan
MTU = 1380
Table = off

[Peer]
# of the provider's
PublicKey = {PUBLIC}
PresharedKey = {PRESHARED}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.example.com:51820
PersistentKeepalive = 25

[Peer]
PublicKey = {PUBLIC2}
AllowedIPs = 10.0.1.0/24
Endpoint = [2001:db8::1]:51820
""",
    f"[peer]\r\npublickey={PUBLIC}\r\nEndpoint=192.0.2.1:1\r\n[interface]\r\nprivatekey={PRIVATE}\r\n"
    "address=10.0.0.2\r\nPostUp = iptables -A FORWARD\r\nSaveConfig = true\r\n",
]
VALUES = [
    "", "0", "-1", "65536", "99999999999", "off", "auto", "0x0", "%i", "10.0.0.1/33",
    "10.0.0.1/-1",
    "::/129", "fe80::1%eth0", "10.0.0.1/255.0.0.0", "a:b:c", "[::1", "[::1]:0", "host:99999",
    "ü.de",
    "1.2.3.4.5", "a" * 300, "\x1b[31m", "\x85", "\u2028", "\u202e", "é" * 70, "=", "==", ",,,",
    " , ", PRIVATE, PRIVATE[:-1], PRIVATE[1:], PRESHARED + "=",
    PRESHARED.lower(), base64.b64decode(PRIVATE).hex(), "public_key=00", "10.0.0.1\x0bset=1", "²",
    "٣", "１２", "1_000", "+5", "1e3", "\ufeff", "\x00",
]  # fmt: skip
KEYS = [
    "PrivateKey", "ListenPort", "Address", "DNS", "MTU", "Table", "PublicKey", "PresharedKey",
    "AllowedIPs", "Endpoint", "PersistentKeepalive", "[Peer]", "[Interface]", "Key", PRIVATE,
    *IGNORABLE,
]  # fmt: skip
SEPARATORS = [*["\n"] * 20, "\r\n", "\r", "\x0b", "\u2028", "\x85", " "]

SET_LINE = re.compile(
    r"set=1|private_key=[0-9a-f]{64}|mtu=\d{3,5}|replace_peers=true"
    r"|public_key=[0-9a-f]{64}|preshared_key=[0-9a-f]{64}|endpoint=(\d+\.){3}\d+:\d{1,5}"
    r"|replace_allowed_ips=true|allowed_ip=[0-9a-f.:]+/\d{1,3}|persistent_keepalive_interval=\d{1,5}"
)


def mutant(rng: random.Random) -> bytes:
    lines = rng.choice(VALID).splitlines()
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3, 5])):
        at = rng.randrange(len(lines) + 1)
        change = rng.randrange(9)
        if change == 0:
            lines.insert(at, f"{rng.choice(KEYS)} = {rng.choice(VALUES)}")
        elif at == len(lines):
            lines.append(rng.choice(KEYS))
        elif change == 1:
            del lines[at]
            lines = lines or [""]
        elif change == 2:
            lines.insert(at, rng.choice(lines))
        elif change == 3:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif change == 4:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        elif change in (5, 6):
            lines[at] = f"{lines[at].partition('=')[0]}={rng.choice(VALUES)}"
        elif change == 7:
            lines[at] += rng.choice([",", ", "]) + rng.choice(VALUES)
        else:
            spot = rng.randrange(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:spot] + rng.choice("\x00\t #=[],:/%1aZ+é\u2028") + lines[at][spot:]
            )
    data = rng.choice(SEPARATORS).join(lines).encode() + rng.choice([b"", b"\n"])
    if data and rng.random() < 0.05:
        data = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data)
    return rng.choice([b"", b"", b"", b"\xef\xbb\xbf"]) + data


def judge(data: bytes, ignore: tuple[str, ...] = ()) -> Config | Error:
    try:
        config = parse(data, ignore)
    except (InvalidConfig, LimitExceeded) as error:
        text = str(error)
        assert text.isprintable(), text
        assert len(text) <= MAX_TEXT
        assert_no_secret(text)
        return error
    shown = repr(config)
    for peer in config.peers:  # who gives a private key as a public one has published it
        shown = shown.replace(peer.public_key, "")
    assert not any(key in shown for key in SECRETS)
    assert_one_set(config)
    return config


def assert_no_secret(text: str) -> None:
    """Nor 20 characters of one, in any case."""
    for run in re.findall(r"[A-Za-z0-9+/=]{20,}", text):
        for start in range(len(run) - 19):
            assert run[start : start + 20].lower() not in FRAGMENTS, text


def fragments() -> set[str]:
    whole = [form for key in SECRETS for form in (key, base64.b64decode(key).hex())]
    return {form[n : n + 20].lower() for form in whole for n in range(len(form) - 19)}


FRAGMENTS = fragments()


def assert_one_set(config: Config) -> None:
    """The engine reads it line by line: a value that had a line's end in it would be a command."""
    endpoints = {peer.public_key: "192.0.2.1:51820" for peer in config.peers if peer.endpoint}
    text = uapi.encode_set(config, mtu=1420, endpoints=endpoints).decode()
    assert text.endswith("\n\n")
    for line in text[:-2].split("\n"):
        assert SET_LINE.fullmatch(line), line


@pytest.mark.timeout(300)
def test_mutants() -> None:
    rng = random.Random(SEED)
    valid = refused = 0
    kinds: set[str] = set()
    for number in range(MUTANTS):
        if number == MUTANTS // 10:
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
        elif number == MUTANTS // 5:
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()  # it takes as long as all the rest
        data = mutant(rng)
        try:
            result = judge(data, rng.choice([(), IGNORABLE, IGNORABLE]))
        except BaseException:
            print(f"seed {SEED}, the {number}th: {data!r}")
            raise
        if isinstance(result, Config):
            valid += 1
        else:
            refused += 1
            kinds.add(re.sub(r"line \d+: |'.*?'|\d+", "", result.text))
    assert after - before < 100_000, "memory grows"
    # It was no test if all had failed in the same way, or none.
    assert valid > MUTANTS / 20
    assert refused > MUTANTS / 10
    assert len(kinds) > 40, sorted(kinds)


lines = st.one_of(
    st.sampled_from(KEYS),
    st.builds("{} = {}".format, st.sampled_from(KEYS), st.text() | st.sampled_from(VALUES)),
    st.text(),
)


@settings(max_examples=OF_HYPOTHESIS, deadline=None)
@given(
    st.one_of(
        st.binary(),
        st.lists(lines).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
        st.lists(lines).map(lambda more: (VALID[1] + "\n".join(more)).encode("utf-8", "replace")),
    )
)
def test_what_hypothesis_thinks_of(data: bytes) -> None:
    judge(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[" * MAX_SIZE, id="brackets"),
        pytest.param(b"\n" * MAX_SIZE, id="lines"),
        pytest.param(b"=" * MAX_SIZE, id="equals"),
        pytest.param(b"[Peer]\n" * (MAX_SIZE // 7), id="peers"),
        pytest.param(b"[Interface]\n" + b"Address=,\n" * (MAX_SIZE // 11), id="addresses"),
        pytest.param(b"[Peer]\nAllowedIPs=" + b"," * (MAX_SIZE - 20), id="commas"),
        pytest.param(b"[Interface]\nMTU=" + b"9" * (MAX_SIZE - 20), id="digits"),
        pytest.param(b"[Interface]\nAddress=" + b"1" * (MAX_SIZE - 20), id="an-address"),
        pytest.param(b"[Interface]\n" + b"k" * (MAX_SIZE - 20) + b"=1", id="a-key"),
        pytest.param(b"[Peer]\nEndpoint=" + b"a." * (MAX_SIZE // 2 - 20) + b":1", id="a-host"),
        pytest.param(b"[Interface]\nDNS=" + b"a-" * (MAX_SIZE // 2 - 20), id="a-label"),
        pytest.param(b"[Interface]\nPrivateKey=" + b"A" * (MAX_SIZE - 40), id="a-private-key"),
    ],
)
@pytest.mark.timeout(10)  # a regular expression gone wild takes years
def test_the_largest_of_a_kind(data: bytes) -> None:
    assert isinstance(judge(data), Error)
