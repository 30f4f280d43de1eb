"""No error shows a key, nor a part of one, wherever it stands and however it was mangled; and an
ordinary mistake is shown still."""

import base64
import functools
import hashlib
import itertools
import re
import traceback
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wg4netnsd.aio import fdpath
from wg4netnsd.api import options
from wg4netnsd.bus.codec import Variant
from wg4netnsd.config.model import Config
from wg4netnsd.config.wgquick import parse
from wg4netnsd.errors import InvalidArgs, InvalidConfig, may_hold_key, quote

SHOWN = 8
"""Characters of a key, one after another, that no message may show."""
HALF = 21
"""Where a line's end tore a key in two, its shorter part can't be told from other short words."""

HIDDEN = "'…' (hidden: it may hold a key)"


def key(seed: int) -> str:
    return base64.b64encode(hashlib.sha256(b"%d" % seed).digest()).decode()


PRIVATE, PRIVATE2, PUBLIC = key(0), key(1), key(2)
PLAIN = next(made for made in map(key, itertools.count(3)) if made.rstrip("=").isalnum())
"""Without its `=` it could be a host's name."""
INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/24\n"
PEER = f"[Peer]\nPublicKey = {PUBLIC}\n"

PLACES = [
    *(
        f"{INTERFACE}{name} = %s\n"
        for name in (
            *("PrivateKey", "Address", "DNS", "ListenPort", "MTU", "Table", "FwMark", "PostUp"),
            *("Address = 10.0.0.3,", "DNS = lan ", "Unknown", ""),
        )
    ),
    *(
        f"{INTERFACE}{PEER}{name} = %s\n"
        for name in (
            *("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"),
            *("AllowedIPs = ::/0,", "Unknown"),
        )
    ),
    "[Interface]\nAddress = 10.0.0.2\nPrivateKey = %s\n",
    "[Interface]\nAddress = 10.0.0.2\nPrivateKey %s\n",
    f"{INTERFACE}{PEER}Endpoint = %s:51820\n",
    f"{INTERFACE}{PEER}Endpoint = [%s]:51820\n",
    f"{INTERFACE}{PEER}AllowedIPs = %s/32\n",
    f"{INTERFACE}%s\n",
    f"{INTERFACE}%s = 1\n",
    f"{INTERFACE}%s: 1\n",
    f"{INTERFACE}[%s]\n",
    f"{INTERFACE}[Peer %s]\n",
    f"{INTERFACE}[%s\n",
    f"%s\n{INTERFACE}",
]


def refused(text: str) -> InvalidConfig | Config:
    """The error that it gives, or else what it is taken for."""
    try:
        return parse(text.encode())
    except InvalidConfig as error:
        return error


def judge(secret: str, text: str, shown: int = SHOWN) -> None:
    """No error shows so many characters of it in a row; nor is half of it taken for a name."""
    result = refused(text)
    if isinstance(result, InvalidConfig):
        assert_hidden(secret, str(result), shown)
    else:
        told = repr(result)
        for peer in result.peers:
            told = told.replace(peer.public_key, "")
        assert_hidden(secret, told, HALF)


def assert_hidden(secret: str, text: str, shown: int = SHOWN) -> None:
    known = fragments(secret, shown)
    for start in range(len(text) - shown + 1):
        assert text[start : start + shown] not in known, text


@functools.cache
def fragments(secret: str, size: int) -> frozenset[str]:
    shapes = (secret.rstrip("="), base64.b64decode(secret).hex())
    return frozenset(
        shape[start : start + size] for shape in shapes for start in range(len(shape) - size + 1)
    )


# ---------------------------------------------------------------- one character, at each position

WRONG = [*"\t ,=#/'\":;.-_+%[]*ü", "\v", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u200b"]


@pytest.mark.parametrize("wrong", WRONG, ids=ascii)
def test_a_wrong_character_anywhere(wrong: str) -> None:
    for place, at in itertools.product(PLACES, range(len(PRIVATE) + 1)):
        for secret, follows in ((PRIVATE, at), (PLAIN, at + 1)):  # inserted, or instead of another
            judge(secret, place.replace("%s", secret[:at] + wrong + secret[follows:]))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=ascii)
def test_the_end_of_a_line_anywhere(end: str) -> None:
    for place, at in itertools.product(PLACES, range(len(PLAIN) + 1)):
        judge(PLAIN, place.replace("%s", PLAIN[:at] + end + PLAIN[at:]), HALF)


def test_the_beginning_of_a_key_is_not_shown() -> None:
    assert "X+zrZv/I" not in str(refused(f"{INTERFACE}Address = X+zrZv/I\tbzjZ{PLAIN[12:]}"))
    assert refused(f"{INTERFACE}Address = X+zrZv/I").args == (
        f"line 4: Address: {HIDDEN} is not an IP address with an optional /prefix",
    )


# ---------------------------------------------------------------- many wrong characters


def grouped(text: str, size: int, between: str) -> str:
    return between.join(text[at : at + size] for at in range(0, len(text), size))


@pytest.mark.parametrize("between", ["\t", " ", ", ", "=", "/", "'", "\xa0", "*"], ids=ascii)
@pytest.mark.parametrize("shape", [str, lambda key: base64.b64decode(key).hex()], ids=["", "hex"])
def test_a_key_in_groups(shape: Callable[[str], str], between: str) -> None:
    for place, size in itertools.product(PLACES, (1, 2, 3, 4, 8, 11, 16, 20)):
        result = refused(place.replace("%s", grouped(shape(PRIVATE2), size, between)))
        if isinstance(result, InvalidConfig):  # else: as domains, they are what they claim to be
            assert_hidden(PRIVATE2, str(result))


# ---------------------------------------------------------------- where no configuration belongs


def test_an_option_that_holds_a_key_is_not_shown() -> None:
    with pytest.raises(InvalidArgs, match=f"unknown option {re.escape(HIDDEN)}: expected one of"):
        options.parse({PRIVATE: Variant("s", "")})
    with pytest.raises(InvalidArgs, match=f"'ignore': {re.escape(HIDDEN)}: expected some of"):
        options.parse({"ignore": Variant("as", [f"PrivateKey={PRIVATE[:20]}"])})


def test_a_configuration_in_place_of_a_path_is_not_shown() -> None:
    for text in (INTERFACE, PRIVATE, PRIVATE[:-1], PRIVATE[:12]):
        with pytest.raises(InvalidArgs, match=f"config_path: {re.escape(HIDDEN)}: expected an abs"):
            fdpath.refuse_relative(text, "config_path")


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    "mistake",
    [
        *(
            "10.0.0.0/33",
            "10.0.0.256",
            "fd00::/129",
            "2001:DB8::1:2:3/200",
            "0.0.0.0 / 0",
            "10.0.0",
        ),
        *(
            "example.org",
            "Example.ORG:0",
            "VPN.Example.org:70000",
            "exam ple.org:1",
            "[::1",
            "a..b",
        ),
        *("ec2-203-0-113-25.eu-central-1.compute.example.com:1:1", "2001:db8::1:51820"),
        *("1380x", "-1", "٣", "autoo", "0xca6c", "[Peers]", "[Interfaces]", "[Peer", "all", ""),
        *(
            "PersistentKeepalive",
            "AllowedIPs",
            "Endpoint",
            "ExcludedApplications",
            "10.0.0.0/8 lan",
        ),
    ],
)
def test_an_ordinary_mistake_is_shown(mistake: str) -> None:
    assert quote(mistake) == repr(mistake)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Address = 10.0.0.256/24 # Bob's MacBook Pro, at the office in Berlin", "'10.0.0.256/24'"),
        ("Address = 10.0.0.3/24, 10.0.0.4/33, fd00::1:2:3:4/64", "'10.0.0.4/33'"),
        ("DNS = 10.0.0.1, lan, corp.example.org, .", "'.'"),
        ("ListenPort = 51820/udp", "'51820/udp'"),
        ("Addres = 10.0.0.3/24", "'Addres'"),
        ("ExcludedApplications = org.example.browser, org.example.mail", "'ExcludedApplications'"),
    ],
)
def test_so_it_is_beside_others(line: str, shown: str) -> None:
    assert shown in str(refused(f"{INTERFACE}{line}\n"))


def test_a_text_in_one_case_is_shown_up_to_half_a_key() -> None:
    assert quote("a" * 20) == repr("a" * 20)
    assert quote("a" * 21) == quote("ab" * 10, "ab" * 10 + " x") == quote("a", line="a" * 21)
    assert quote("a" * 21) == HIDDEN


def test_a_control_character_is_not_shown_as_it_is() -> None:
    assert quote("a\x1b[31m\u202e").isprintable()


# ---------------------------------------------------------------- any key, by a search

# Unlike those of st.binary(), which shrink to AAA…, these never share so many characters.
secrets = st.integers(0, 1 << 64).map(key)


def mangled(secret: str, how: str, at: int) -> str:
    match how:
        case "whole":
            return secret
        case "cut":
            return secret[:-1]
        case "twice":
            return secret + secret
        case "hex":
            return base64.b64decode(secret).hex()
        case "lost":
            return secret[:at] + secret[at + 1 :]
        case "inserted":
            return secret[:at] + "\t" + secret[at:]
        case character:
            return secret[:at] + character + secret[at + 1 :]


HOW = ["whole", "cut", "twice", "hex", "lost", "inserted", *"-_.: ,=#%&\t\r\n\0ü"]


@settings(deadline=None, max_examples=500)
@given(secrets, st.sampled_from(PLACES), st.sampled_from(HOW), st.integers(0, 43))
@example(PRIVATE, f"{INTERFACE}{PEER}Endpoint = %s\n", "-", 21)
@example(PRIVATE, f"{INTERFACE}Address = %s\n", "\t", 8)
def test_no_error_shows_a_key(secret: str, place: str, how: str, at: int) -> None:
    judge(
        secret,
        place.replace("%s", mangled(secret, how, at)),
        HALF if how in "\r\n" else SHOWN,
    )


@pytest.mark.parametrize("place", PLACES)
def test_no_traceback_shows_a_key(place: str) -> None:
    result = refused(place.replace("%s", mangled(PRIVATE2, "\t", 8)))
    assert isinstance(result, InvalidConfig)
    for told in (repr(result), "".join(traceback.format_exception(result))):
        assert_hidden(PRIVATE2, told)


@settings(deadline=None, max_examples=500)
@given(secrets, st.integers(0, 21))
def test_half_a_key_is_told_from_words(secret: str, at: int) -> None:
    assert may_hold_key(secret[at : at + 21])


@given(st.lists(secrets, min_size=3, max_size=3, unique=True))
def test_no_model_shows_a_key(keys: list[str]) -> None:
    private, preshared, public = keys
    config = parse(
        f"[Interface]\nPrivateKey = {private}\nAddress = 10.0.0.2\n"
        f"[Peer]\nPublicKey = {public}\nPresharedKey = {preshared}\n".encode()
    )
    models = (config, config.interface, config.peers, config.peers[0])
    texts = [show(model) for model in models for show in (repr, str, "{}".format)]
    for text in (*texts, config.model_dump_json()):
        assert_hidden(private, text)
        assert_hidden(preshared, text)
    assert any(public in text for text in texts)
