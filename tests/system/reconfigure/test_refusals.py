"""A change that fails leaves all as it was."""

import os
import re
from dataclasses import replace
from typing import Any

import pytest

from support.bus import Client, DBusError
from support.fds import pipe
from support.namespaces import Namespace
from support.reconfiguration import BROKEN, ONE, P1, P2, PAIRS, own_things, peer
from support.witnesses import Make, expected


@pytest.mark.parametrize("how", BROKEN)
def test_an_invalid_configuration(tunnel: Make, how: str) -> None:
    subject = tunnel(ONE)
    text = BROKEN[how](str(replace(ONE, mtu=0, addresses=("10.6.0.1/24",))))
    message = subject.refused("InvalidConfig", text)
    assert re.match(
        r"InvalidConfig: (line \d+: |the configuration is empty|no \[Interface\])", message
    )


@pytest.mark.parametrize(
    ("error", "options"),
    [
        ("InvalidArgs", {"colour": ("s", "blue")}),
        ("InvalidArgs", {"name": ("s", "another")}),
        ("InvalidArgs", {"mtu": ("s", "1300")}),
        ("InvalidArgs", {"mtu": ("u", 575)}),
        ("InvalidArgs", {"ignore": ("as", ["MTU"])}),
        ("InvalidConfig", {"mtu": ("u", 1000)}),
    ],
)
def test_a_wrong_option(tunnel: Make, error: str, options: dict[str, Any]) -> None:
    subject = tunnel(ONE)
    conf = replace(ONE, addresses=("10.6.0.1/24", "fd06::1/64"))
    message = subject.refused(error, conf, **options)
    assert "MTU: 1000" in message or next(iter(options)) in message


@pytest.mark.parametrize(
    ("change", "error", "fragment"),
    [
        ({"peers": (P2, peer(0))}, "InvalidConfig", "the interface's own"),
        ({"peers": (P2, peer(3, "10.99.0.0/16"))}, "TunFailed", "10.99.0.0/16"),
        ({"peers": (P2, peer(3, "fd99::/64")), "mtu": 1300}, "InvalidConfig", "fd99::/64"),
    ],
)
def test_a_change_that_is_refused(
    tunnel: Make, inside: Namespace, change: dict[str, Any], error: str, fragment: str
) -> None:
    own_things(inside)
    subject = tunnel(replace(ONE, addresses=("10.9.0.2/24", "10.9.0.3/24", "fd09::2/64")))
    others = replace(ONE, addresses=("10.8.0.2/24", "10.9.0.3/24"), dns=("10.8.0.1",))
    assert fragment in subject.refused(error, replace(others, **change))


def test_an_own_key_that_only_the_engine_recognises(tunnel: Make) -> None:
    subject = tunnel(ONE)
    port = subject.get("ListenPort")
    with pytest.raises(
        DBusError, match=r"InvalidConfig: line \d+: PublicKey: this is the interface's own"
    ):
        subject.reconfigure(replace(ONE, me=PAIRS[1], peers=(P2, P1), mtu=1300))
    assert subject.get("State") == "up"
    assert subject.seen() == expected(ONE, port)


def test_an_interface_that_its_owner_renamed(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(ONE)
    other = replace(ONE, mtu=1300, peers=(P2,))
    inside.check("ip", "link", "set", "wg0", "name", "mine")
    subject.reconfigure(other)
    inside.check("ip", "link", "set", "mine", "name", "wg0")
    assert subject.seen() == expected(other, subject.get("ListenPort"))
    assert subject.restarts() == 0


def test_a_configuration_that_never_ends(tunnel: Make, client: Client) -> None:
    subject = tunnel(ONE)
    with pipe() as (read_end, write_end), subject.unchanged():
        os.write(write_end, str(replace(ONE, mtu=1300)).encode())
        with pytest.raises(DBusError, match="Timeout"):
            client.tunnel(subject.path, "Reconfigure", "ha{sv}", read_end, {})
