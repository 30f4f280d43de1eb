"""Texts in wg-quick's format, and what becomes of them."""

import base64
from typing import Any

import pytest

from wg4netnsd.config.model import Config
from wg4netnsd.config.wgquick import parse
from wg4netnsd.errors import InvalidConfig


def key(seed: int) -> str:
    return base64.b64encode(bytes((seed * 73 + i * 151) % 256 for i in range(32))).decode()


PRIVATE, PRESHARED, PUBLIC, PUBLIC2 = map(key, range(4))
INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/24\n"  # further lines: 4 …
PEER = f"[Peer]\nPublicKey = {PUBLIC}\n"  # … and after both: 6 …
PEER2 = f"[Peer]\nPublicKey = {PUBLIC2}\n"
PROVIDERS = f"""
# as a provider hands it out
[Interface]
PrivateKey = {PRIVATE}
Address = 10.2.0.2/32, 2a07:b944::2:2/128
DNS = 10.2.0.1, 2a07:b944::2:1
DNS = lan, corp.example.org
ListenPort = 51821
MTU = 1380
Table = off

[Peer]  # NL#42
PublicKey = {PUBLIC}
PresharedKey = {PRESHARED}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = nl-42.example.org:51820
PersistentKeepalive = 25
"""


def parsed(text: str, **options: Any) -> Config:
    return parse(text.encode(), **options)


def refusal(data: str | bytes, **options: Any) -> str:
    """The message of the error that it gives."""
    with pytest.raises(InvalidConfig) as refused:
        parse(data.encode() if isinstance(data, str) else data, **options)
    assert str(refused.value) == f"InvalidConfig: {refused.value.text}"
    return refused.value.text
