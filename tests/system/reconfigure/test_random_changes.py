"""A thousand random changes, valid and invalid."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.depth import depth
from support.fds import udp_port_in_use
from support.namespaces import Namespace
from support.reconfiguration import BROKEN, PAIRS, SECRETS, Conf, free_port, own_things, peer
from support.witnesses import Make, expected, routed, unroutable

pytestmark = pytest.mark.long

ADDRESSES = (
    "10.9.0.1/24", "10.9.0.2/24", "10.9.0.3/32", "10.9.1.1/16", "10.20.0.1/16",
    "fd09::1/64", "fd09::2/64", "fd09::3/128", "fd20::1/64",
)  # fmt: skip
NETWORKS = (
    "0.0.0.0/0", "::/0", "10.9.0.0/24", "10.9.0.0/16", "10.9.0.2/32", "10.20.0.0/16",
    "10.20.3.4/16", "10.20.1.0/24", "10.99.0.0/16", "fd09::/64", "fd09::2/128", "fd20::/64",
    "fd20::/48", "fd99::/64",
)  # fmt: skip
CLASHING = {"10.99.0.0/16", "fd99::/64"}
"""The networks of own_things()."""
FREE, FREE2, BUSY = "free", "another free", "busy"


@dataclass(frozen=True)
class Asked:
    """One reconfiguration: a port by its role, and in what way the text is broken."""

    conf: Conf
    port: str
    broken: str


@st.composite
def some_conf(draw: st.DrawFn) -> Asked:
    """Mostly valid by itself."""
    keys = draw(st.lists(st.sampled_from([2, 3, 4, 1, 0]), max_size=4, unique=True))
    owners = {}
    if keys:
        owners = draw(st.dictionaries(st.sampled_from(NETWORKS), st.sampled_from(keys), max_size=6))
        if {"10.20.0.0/16", "10.20.3.4/16"} <= owners.keys():  # the same one
            del owners["10.20.3.4/16"]
    peers = tuple(
        peer(
            key,
            *(network for network, owner in owners.items() if owner == key),
            endpoint=draw(st.sampled_from(["", "127.0.0.1:9", "[::1]:9", "127.0.0.2:9"])),
            secret=draw(st.sampled_from(["", *SECRETS])),
            keepalive=draw(st.sampled_from([0, 0, 0, 25])),
        )
        for key in keys
    )
    conf = Conf(
        draw(st.sampled_from(PAIRS[:2])),
        tuple(draw(st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=4, unique=True))),
        peers,
        mtu=draw(st.sampled_from([0, 0, 0, 0, 1279, 1280, 1281, 1400])),
        dns=tuple(draw(st.lists(st.sampled_from(["10.9.0.9", "fd09::9", "a.test"]), max_size=2))),
        table=draw(st.sampled_from(["", "", "auto", "off"])),
    )
    port = draw(st.sampled_from(["", "", "", FREE, FREE2, BUSY]))
    return Asked(conf, port, draw(st.sampled_from([""] * len(BROKEN) * 4 + [*BROKEN])))


def refusals(conf: Conf, busy: int) -> set[str]:
    """The errors of which one is due; none for a valid configuration."""
    too_small = 0 < conf.mtu < 1280
    errors = set()
    if conf.me.public in {peer.key for peer in conf.peers}:
        errors.add("InvalidConfig")
    if too_small and any(":" in address for address in conf.addresses):
        errors.add("InvalidConfig")
    if unroutable(conf) & CLASHING:
        errors.add("InvalidConfig")
    if routed(conf) & CLASHING:
        errors.add("TunFailed")
    if conf.port == busy:
        errors.add("EngineFailed")
    return errors


RUNS = depth(15, 50)
"""Of twenty reconfigurations each."""


@pytest.mark.timeout(300)
def test_many_reconfigurations(tunnel: Make, inside: Namespace) -> None:
    """Engine, interface and D-Bus agree with the last valid one."""
    own_things(inside)
    base = Conf(port=free_port())
    bound, busy = udp_port_in_use()
    ports = {"": 0, FREE: base.port, FREE2: free_port(), BUSY: busy}
    subject = tunnel(base)
    outcomes = Counter[str]()

    @given(st.lists(some_conf(), min_size=20, max_size=20))
    @settings(
        max_examples=RUNS,
        deadline=None,
        phases=[Phase.generate],  # to shrink what takes a second would take the test's time
        suppress_health_check=[*HealthCheck],
    )
    def all_agree(asked: list[Asked]) -> None:
        subject.reconfigure(base)
        port, endpoints, now = base.port, dict[str, str](), expected(base, base.port)
        for each in asked:
            conf = replace(each.conf, port=ports[each.port])
            text = BROKEN[each.broken](str(conf)) if each.broken else str(conf)
            due = {"InvalidConfig"} if each.broken else refusals(conf, busy)
            error = subject.error_of(text)
            assert error in (due or {""})
            outcomes[error] += 1
            if not error:
                port = conf.port or port
                endpoints = {p.key: p.endpoint or endpoints.get(p.key, "") for p in conf.peers}
                now = expected(conf, port, endpoints)
            assert subject.seen() == now

    with bound:
        all_agree()
    assert outcomes.total() >= 20 * RUNS
    assert all(
        outcomes[each] > 0.03 * outcomes.total()
        for each in ("InvalidConfig", "TunFailed", "EngineFailed")
    )
    assert outcomes[""] > 0.3 * outcomes.total()
