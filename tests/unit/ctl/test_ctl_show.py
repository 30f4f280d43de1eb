"""The layout of `list` and `show`. tests/system checks the data."""

import time
from typing import Any

import pytest

from wg4netnsd.ctl import monitor, show, units
from wg4netnsd.ctl.changes import Event

NOW = 1_700_000_000

PEER: dict[str, Any] = {
    "state": "active",
    "endpoint": "192.0.2.1:51820",
    "endpoint_host": "far.test:51820",
    "endpoint_error": "",
    "allowed_ips": ["0.0.0.0/0", "::/0"],
    "last_handshake_usec": (NOW - 61) * 1_000_000,
    "rx_bytes": 1023,
    "tx_bytes": 1024,
    "persistent_keepalive": 25,
}
NEVER_MET = PEER | {
    "state": "idle",
    "endpoint": "",
    "endpoint_host": "",
    "allowed_ips": [],
    "last_handshake_usec": 0,
    "rx_bytes": 0,
    "tx_bytes": 0,
    "persistent_keepalive": 0,
}
TUNNEL: dict[str, Any] = {
    "name": "office",
    "state": "up",
    "interface": "wg0",
    "link_state": "up",
    "public_key": "its key",
    "listen_port": 51821,
    "addresses": ["10.9.0.2/24", "fd00::2/64"],
    "dns": ["10.9.0.1", "lan"],
    "mtu": 1420,
    "engine_pid": 4711,
    "restart_count": 0,
    "last_error": ["", ""],
    "peers": {"a key": PEER, "another": NEVER_MET},
    "forwards": [],
}
FORWARD: dict[str, Any] = {
    "id": "1",
    "kind": "local",
    "protocol": "udp",
    "listening": ["127.0.0.1:53", "[::1]:53"],
    "target": "dns.example:53",
    "access": "anyone",
    "counters": {
        "open": 1,
        "total": 2,
        "refused": 3,
        "failed": 0,
        "bytes_in": 2048,
        "bytes_out": 1,
    },
}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(time, "time", lambda: NOW)


def test_a_tunnel() -> None:
    assert list(show._lines(TUNNEL)) == [
        "tunnel: office",
        "  state: up",
        "  interface: wg0",
        "  public key: its key",
        "  listening port: 51821",
        "  addresses: 10.9.0.2/24, fd00::2/64",
        "  dns: 10.9.0.1, lan",
        "  mtu: 1420",
        "  engine: process 4711",
        "",
        "peer: a key",
        "  state: active",
        "  endpoint: 192.0.2.1:51820 (far.test:51820)",
        "  allowed ips: 0.0.0.0/0, ::/0",
        "  latest handshake: 1 minute, 1 second ago",
        "  transfer: 1023 B received, 1.00 KiB sent",
        "  persistent keepalive: every 25 seconds",
        "",
        "peer: another",
        "  state: idle",
        "  allowed ips: (none)",
    ]


def test_a_forward() -> None:
    *_, gap, head, kind, listening, target, access, connections, transfer = show._lines(
        TUNNEL | {"forwards": [FORWARD]}
    )
    assert (gap, head, kind) == ("", "forward: 1", "  kind: local (udp)")
    assert listening == "  listening: 127.0.0.1:53, [::1]:53"
    assert (target, access) == ("  target: dns.example:53", "  access: anyone")
    assert connections == "  connections: 1 open, 2 total, 3 refused, 0 failed"
    assert transfer == "  transfer: 2.00 KiB received, 1 B sent"


def test_a_tunnel_that_is_not_well() -> None:
    ill = {
        "state": "failed",
        "link_state": "down",
        "listen_port": 0,
        "dns": [],
        "engine_pid": 0,
        "last_error": ["org.wg4netns1.Error.EngineFailed", "EngineFailed: it is no more"],
        "peers": {},
    }
    assert list(show._lines(TUNNEL | ill)) == [
        "tunnel: office",
        "  state: failed",
        "  interface: wg0 (down)",
        "  public key: its key",
        "  addresses: 10.9.0.2/24, fd00::2/64",
        "  dns: none",
        "  mtu: 1420",
        "  engine: none",
        "  last error: it is no more",
    ]
    assert "  engine: process 4711, replaced 1 time" in show._lines(TUNNEL | {"restart_count": 1})
    assert "  engine: process 4711, replaced 2 times" in show._lines(TUNNEL | {"restart_count": 2})


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ({"endpoint": "192.0.2.1:1", "endpoint_host": ""}, "192.0.2.1:1"),
        ({"endpoint": "192.0.2.1:1", "endpoint_host": "192.0.2.1:1"}, "192.0.2.1:1"),
        ({"endpoint": "", "endpoint_host": "far.test:1"}, "far.test:1"),
        (
            {
                "endpoint": "",
                "endpoint_host": "far.test:1",
                "endpoint_error": "Unresolved: far.test: no such name",
            },
            "far.test:1 (no such name)",
        ),
    ],
)
def test_an_endpoint(known: dict[str, str], shown: str) -> None:
    assert show._endpoint(PEER | known) == shown


@pytest.mark.parametrize(
    ("seconds", "ago"),
    [
        (-5, "now"),
        (0, "now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (120, "2 minutes ago"),
        (3600, "1 hour ago"),
        (2 * 86_400 + 3 * 3600 + 62, "2 days, 3 hours, 1 minute, 2 seconds ago"),
    ],
)
def test_how_long_ago(seconds: int, ago: str) -> None:
    assert show._ago((NOW - seconds) * 1_000_000) == ago


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 << 10, "1.50 MiB"),
        (1 << 30, "1.00 GiB"),
        (5 << 40, "5.00 TiB"),
        (5 << 50, "5120.00 TiB"),
    ],
)
def test_how_many_bytes(count: int, shown: str) -> None:
    assert units.bytes_of(count) == shown


@pytest.mark.parametrize(
    ("room", "shown"), [(11, "aaa bbb ccc"), (10, "aaa bbb +1"), (9, "aaa +2"), (1, "aaa +2")]
)
def test_a_list_that_is_cut(room: int, shown: str) -> None:
    assert show._cut("aaa bbb ccc", room) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ", no handshake yet"),
        (-1, ", handshake 0 s ago"),
        (119, ", handshake 119 s ago"),
        (120, ", handshake 2 min ago"),
        (7199, ", handshake 119 min ago"),
        (7200, ", handshake 2 h ago"),
        (2 * 86_400, ", handshake 2 d ago"),
    ],
)
def test_a_handshake_in_a_snapshot(seconds: int | None, shown: str) -> None:
    at = 0 if seconds is None else (NOW - seconds) * 1_000_000
    event = Event(event="peer-state", usec=NOW * 1_000_000, state="", last_handshake_usec=at)
    assert monitor._last_handshake(event) == shown
