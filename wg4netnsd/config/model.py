"""A configuration: frozen models, and one parser for each type of value.

A value is checked only here, when a model is made of it. wgquick.py parses the text around it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretBytes

from wg4netnsd.errors import InvalidConfig

MIN_MTU, MAX_MTU = 576, 65535
IPV6_MIN_MTU: Final = 1280  # RFC 8200, section 5
PATH_MTU: Final = 1500
"""The MTU of the paths to the peers while none is known, in bytes: Ethernet's."""
MAX_PATH_MTU: Final = 9000
"""The largest that a default follows: of jumbo frames."""
LOOPBACK_MTU: Final = 65535
"""That of a path to the host itself, or one more, which is no reason for such an interface."""
OVERHEAD: Final = {4: 60, 6: 80}
"""Bytes that WireGuard puts around a packet: the header of that IP version, UDP's 8, its own 32."""

TABLES: Final = ("auto", "off")

Address = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Dns = IPv4Address | IPv6Address | str  # a name server's address, or a search domain

# ---------------------------------------------------------------- one parser per value type
# Each parses the text after the `=`, or raises a ValueError that says what was expected.

VALUE: Final = "{value}"
"""Stands for the value in a ValueError's text. wgquick.py fills it in: only with the whole line can
it decide whether the value may be shown."""

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}\.?$){_LABEL}(\.{_LABEL})*\.?")
_HALF_A_KEY = re.compile(r"(?=[A-Z0-9]*[a-z])(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{21,}")


def _key(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected a key: 32 bytes in base64, 44 characters") from None
    if len(raw) != 32:
        raise ValueError(f"expected a key of 32 bytes in base64, got {len(raw)} bytes")
    if base64.b64encode(raw).decode() != text:
        raise ValueError("expected a key in canonical base64: its last character has stray bits")
    return raw


def _public_key(text: str) -> str:
    _key(text)
    return text


def _number(low: int, high: int, **words: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.lower() in words:
            return words[text.lower()]
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
            also = "".join(f" or '{word}'" for word in words)
            raise ValueError(f"{VALUE} is not a number from {low} to {high}{also}")
        return int(text)

    return parse


def _cidr(text: str) -> str:
    """Refuse a scope, a netmask and a hostmask, which Python would accept but wg(8) does not."""
    if not re.fullmatch(r"[^%/]+(/\d{1,3})?", text):
        raise ValueError
    return text


def _without_blanks(text: str, around: str) -> str:
    """Return `text` without blanks around that character; wg(8) drops all blanks."""
    return re.sub(rf"\s*{around}\s*", around, text)


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_interface(_cidr(text))
    except ValueError:
        raise ValueError(f"{VALUE} is not an IP address with an optional /prefix") from None


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(_cidr(_without_blanks(text, "/")), strict=False)
    except ValueError:
        raise ValueError(f"{VALUE} is not a network") from None


def is_host_name(text: str) -> bool:
    """Return whether `text` is a host name and cannot be a mangled key.

    A quarter of all keys would be valid host names once they have lost their `=` or have a `.` or
    `-` in them; they would be shown and looked up. No real label has that many characters in a row
    in mixed case.
    """
    return (
        bool(_HOSTNAME.fullmatch(text))
        and not re.fullmatch(r"[\d.]+", text)
        and not _HALF_A_KEY.search(text)
    )


def _dns(text: str) -> Dns:
    if is_host_name(text):
        return text
    try:
        return ipaddress.ip_address(_bare_ipv6(text) if ":" in text else text)
    except ValueError:
        raise ValueError(f"{VALUE} is neither an IP address nor a domain") from None


def _table(text: str) -> str:
    if text.lower() not in TABLES:
        raise ValueError(
            f"{VALUE} needs privileges that wg4netnsd does not have: expected 'auto' or 'off', "
            "or the option ignore=['Table']"
        )
    return text.lower()


class Endpoint(NamedTuple):
    """A peer's `host:port`. The host is a name or an address; IPv6 without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _endpoint(text: str) -> Endpoint:
    text = _without_blanks(text, ":")
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*)):(\d{1,5})", text)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise ValueError(
            f"{VALUE} is not HOST:PORT or [IPV6]:PORT, port 1 to 65535{_bracket_hint(text)}"
        )
    v6, host, port = match[1], match[2], int(match[3])
    try:
        if v6 is not None:
            return Endpoint(unmapped(_bare_ipv6(v6)), port)
        if re.fullmatch(r"[\d.]+", host):
            return Endpoint(str(IPv4Address(host)), port)
    except ValueError:
        raise ValueError(f"{VALUE}: the host is not an IP address") from None
    if not is_host_name(host):
        raise ValueError(f"{VALUE}: the host is neither an IP address nor a host name")
    return Endpoint(host, port)


def _bracket_hint(text: str) -> str:
    """Return what to write for an IPv6 address without brackets, or "" if it is none.

    wg(8) takes what is behind the last colon for the port. That is as often the address's end.
    """
    host, _, port = text.rpartition(":")
    try:
        return f": expected [{_bare_ipv6(host)}]:{_number(1, 65535)(port)}"
    except ValueError:
        return ""


def unmapped(address: str) -> str:
    """Return the IPv4 address of an IPv4-mapped one (::ffff:192.0.2.1), and any other as it is.

    An engine's IPv6 sockets send nothing there: they are for IPv6 only (IPV6_V6ONLY).
    """
    mapped = ":" in address and IPv6Address(address).ipv4_mapped
    return str(mapped) if mapped else address


def _bare_ipv6(text: str) -> str:
    """Normalise an IPv6 address. A scope (fe80::1%eth0) stays: the engine uses it on the host."""
    address, _, scope = text.partition("%")
    if scope and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", scope):
        raise ValueError
    return str(IPv6Address(address)) + (f"%{scope}" if scope else "")


# ---------------------------------------------------------------- the models


class Section(BaseModel):
    """One section of the file; a field's alias is its key there."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Interface(Section):
    private_key: Annotated[SecretBytes, BeforeValidator(_key)] = Field(alias="PrivateKey")
    listen_port: Annotated[int, BeforeValidator(_number(0, 65535))] = Field(0, alias="ListenPort")
    addresses: tuple[Annotated[Address, BeforeValidator(_address)], ...] = Field(
        alias="Address", min_length=1
    )
    dns: tuple[Annotated[Dns, BeforeValidator(_dns)], ...] = Field((), alias="DNS")
    mtu: Annotated[int | None, BeforeValidator(_number(MIN_MTU, MAX_MTU))] = Field(
        None, alias="MTU"
    )
    table: Annotated[Literal["auto", "off"], BeforeValidator(_table)] = Field("auto", alias="Table")


class Peer(Section):
    public_key: Annotated[str, BeforeValidator(_public_key)] = Field(alias="PublicKey")
    preshared_key: Annotated[SecretBytes | None, BeforeValidator(_key)] = Field(
        None, alias="PresharedKey"
    )
    allowed_ips: tuple[Annotated[Network, BeforeValidator(_network)], ...] = Field(
        (), alias="AllowedIPs"
    )
    endpoint: Annotated[Endpoint | None, BeforeValidator(_endpoint)] = Field(None, alias="Endpoint")
    persistent_keepalive: Annotated[int, BeforeValidator(_number(0, 65535, off=0))] = Field(
        0, alias="PersistentKeepalive"
    )


class Config(BaseModel):
    """A whole, valid configuration. `repr()` shows no private or preshared key."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    interface: Interface
    peers: tuple[Peer, ...]
    peer_lines: tuple[int, ...] = ()
    """The line of each peer's section in the file, for errors that are found later."""

    def __eq__(self, other: object) -> bool:
        """Compare what is configured; where it stands in the file makes no difference."""
        if not isinstance(other, Config):
            return NotImplemented
        return (self.interface, self.peers) == (other.interface, other.peers)

    def mtu(self, override: int | None = None, path_mtu: int = PATH_MTU) -> int:
        """Return the interface's MTU in bytes: `override`, else the file's, else the path's.

        The last is what fits the path, over either IP version, as in wg-quick. But it is never too
        small for the addresses: where IPv6 needs more, larger packets go in fragments.

        Raises InvalidConfig if it is too small for the addresses (IPv6 needs 1280).
        """
        has_ipv6 = any(a.version == 6 for a in self.interface.addresses)
        least = IPV6_MIN_MTU if has_ipv6 else MIN_MTU
        if path_mtu >= LOOPBACK_MTU:
            path_mtu = PATH_MTU
        default = max(least, min(path_mtu, MAX_PATH_MTU) - OVERHEAD[6])
        mtu = override or self.interface.mtu or default
        if mtu < least:
            raise InvalidConfig(
                f"MTU: {mtu} is too small for IPv6: expected {IPV6_MIN_MTU} or more"
            )
        return mtu

    def routes(self) -> tuple[Network, ...]:
        """Return the networks to route into the interface: all allowed IPs, unless `Table = off`.

        A network that equals an address's own prefix is left out: the kernel adds that route.
        """
        connected = {a.network for a in self.interface.addresses}
        return tuple(n for n in self._wanted_routes(True) if n not in connected)

    def unroutable(self) -> tuple[Network, ...]:
        """Return the networks of an IP version without an address, from which nothing could answer.

        Without a route, programs fail at once, rather than wait for an answer.
        """
        return self._wanted_routes(False)

    def _wanted_routes(self, with_address: bool) -> tuple[Network, ...]:
        if self.interface.table == "off":
            return ()
        versions = {address.version for address in self.interface.addresses}
        networks = dict.fromkeys(n for peer in self.peers for n in peer.allowed_ips)
        return tuple(n for n in networks if (n.version in versions) == with_address)

    def unreachable_dns(self) -> list[IPv4Address | IPv6Address]:
        """Return the name servers that are in nobody's AllowedIPs, so that no query reaches them.

        With `Table = off`, queries may take another way.
        """
        if self.interface.table == "off":
            return []
        networks = [n for peer in self.peers for n in peer.allowed_ips]
        own = {address.ip for address in self.interface.addresses}
        servers = [s for s in self.interface.dns if not isinstance(s, str)]
        return [
            server
            for server in servers
            if not server.is_loopback
            and server not in own
            and not any(server in network for network in networks)
        ]
