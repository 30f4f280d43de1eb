"""The options of AddForward: declared once, checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from wg4netnsd.bus.codec import Variant
from wg4netnsd.errors import InvalidArgs, quote
from wg4netnsd.tunnel.forward import ForwardSpec
from wg4netnsd.tunnel.forwards import MAX_LISTENERS

SIGNATURES: Final = {
    "kind": "s",
    "protocol": "s",
    "listen": "as",
    "listeners": "ah",
    "target": "s",
    "access": "s",
    "credentials": "h",
    "proxy_protocol": "b",
    "idle_usec": "t",
    "connect_usec": "t",
}
"""The D-Bus type of each option."""

CHOICES: Final = {
    "kind": ("proxy", "local", "remote"),
    "protocol": ("tcp", "udp"),
    "access": ("user", "anyone"),
}

MAX_CREDENTIAL: Final = 255
"""Bytes of a user's name and of a password; RFC 1929, section 2."""


class Asked(NamedTuple):
    """What was asked for; fds are indexes into the call's."""

    spec: ForwardSpec
    listeners: list[int]
    credentials: int | None


def parse(options: Mapping[str, Variant]) -> Asked:
    """Check the options. Raises InvalidArgs, naming the option."""
    values: dict[str, Any] = {}
    for name, variant in options.items():
        if name not in SIGNATURES:
            known = ", ".join(SIGNATURES)
            raise InvalidArgs(f"unknown option {quote(name)}: expected one of {known}")
        if variant.signature != SIGNATURES[name]:
            wanted, got = SIGNATURES[name], variant.signature[:32]
            raise _invalid(name, f"expected type {wanted}, got {got}")
        values[name] = variant.value
    if "kind" not in values:
        raise _invalid("kind", "expected 'proxy', 'local' or 'remote'")
    for name, choices in CHOICES.items():
        if name in values and values[name] not in choices:
            expected = " or ".join(f"'{choice}'" for choice in choices)
            raise _invalid(name, f"{quote(values[name])}: expected {expected}")
    listeners = list(values.pop("listeners", ()))
    credentials = values.pop("credentials", None)
    idle, connect = values.pop("idle_usec", 0), values.pop("connect_usec", None)
    spec = ForwardSpec(
        **values
        | {"listen": tuple(values.get("listen", ())), "idle_seconds": idle / 1e6}
        | ({} if connect is None else {"connect_seconds": connect / 1e6})
    )
    _check(spec, listeners, credentials)
    return Asked(spec, listeners, credentials)


def _check(spec: ForwardSpec, listeners: list[int], credentials: int | None) -> None:
    if bool(spec.listen) == bool(listeners):
        raise _invalid("listen", "expected either this or 'listeners'")
    if spec.kind == "remote" and listeners:
        raise _invalid("listeners", "a remote forward listens in the tunnel: expected 'listen'")
    if max(len(spec.listen), len(listeners)) > MAX_LISTENERS:
        raise _invalid("listen", f"expected at most {MAX_LISTENERS} addresses")
    if bool(spec.target) == (spec.kind == "proxy"):
        raise _invalid("target", "expected for a local or remote forward, and only there")
    if spec.kind == "proxy" and spec.protocol == "udp":
        raise _invalid("protocol", "a proxy listens on TCP; SOCKS5 clients get UDP by it")
    if credentials is not None and spec.kind != "proxy":
        raise _invalid("credentials", "expected for a proxy only")
    if spec.proxy_protocol and (spec.kind, spec.protocol) != ("remote", "tcp"):
        raise _invalid("proxy_protocol", "expected for a remote TCP forward only")
    if not spec.connect_seconds:
        raise _invalid("connect_usec", "expected more than 0")


def parse_credentials(content: bytes) -> dict[str, str]:
    """Return the hash of each user's password. Raises InvalidArgs, which shows no password."""
    found = {}
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise _invalid("credentials", "expected UTF-8") from None
    for number, line in enumerate(lines, 1):
        user, colon, password = line.partition(":")
        parts = [user.encode(), password.encode()]
        if not colon or not all(1 <= len(part) <= MAX_CREDENTIAL for part in parts):
            expected = f"expected 'user:password', each of 1 to {MAX_CREDENTIAL} bytes"
            raise _invalid("credentials", f"line {number}: {expected}")
        found[user] = hashlib.sha256(password.encode()).hexdigest()
    if not found:
        raise _invalid("credentials", "expected at least one line 'user:password'")
    return found


def _invalid(option: str, expected: str) -> InvalidArgs:
    return InvalidArgs(f"option '{option}': {expected}")
