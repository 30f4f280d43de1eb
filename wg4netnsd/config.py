"""The wg-quick format, parsed once into frozen models.

`parse()` is the border: what it returns is valid, and what it raises says the line, the key and
the offending value. Keys of wg-quick's that an unprivileged daemon can't honour are refused by
name, unless the caller asks to ignore just those. See wg-quick(8) and wg(8) for the format.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretBytes, ValidationError

from wg4netnsd.errors import InvalidConfig

MAX_SIZE: Final = 1 << 20
"""Bytes; more than 4,000 peers take."""

DEFAULT_MTU: Final = 1420
MIN_MTU, MAX_MTU = 576, 65535
IPV6_MIN_MTU: Final = 1280  # RFC 8200, section 5

IGNORABLE: Final = ("FwMark", "PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig", "Table")
"""wg-quick's keys that we can't honour (`Table`: only its values other than auto and off)."""

_TABLES: Final = ("auto", "off")
_HARMLESS: Final = {"fwmark": ("off", "0", "0x0"), "saveconfig": ("false",)}
"""Values that ask for nothing."""

Address = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# ---------------------------------------------------------------- one parser per value type
# Each takes the text after the `=` and raises a ValueError that says what was expected.

_KEY_PART = re.compile(r"[A-Za-z0-9+/]{20,}")  # a key with one wrong character has as many
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}\.?$){_LABEL}(\.{_LABEL})*\.?")


def quote(text: str) -> str:
    """`text` for an error message: short, printable, and not where it may be a mangled key."""
    shown = "…" if _KEY_PART.search(text) else text
    return repr(shown if len(shown) <= 60 else shown[:59] + "…")


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
            raise ValueError(f"{quote(text)} is not a number from {low} to {high}{also}")
        return int(text)

    return parse


def _unscoped(text: str) -> str:
    if "%" in text:  # valid to Python, nowhere else
        raise ValueError
    return text


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_interface(_unscoped(text))
    except ValueError:
        raise ValueError(f"{quote(text)} is not an IP address with an optional /prefix") from None


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(_unscoped(text), strict=False)
    except ValueError:
        raise ValueError(f"{quote(text)} is not a network") from None


def _dns(text: str) -> IPv4Address | IPv6Address | str:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        if not _HOSTNAME.fullmatch(text) or re.fullmatch(r"[\d.]+", text):
            raise ValueError(f"{quote(text)} is neither an IP address nor a domain") from None
        return text


def _table(text: str) -> str:
    if text.lower() not in _TABLES:
        raise ValueError(
            f"{quote(text)} can't be honoured without privilege: expected 'auto' or 'off', "
            "or the option ignore=['Table']"
        )
    return text.lower()


class Endpoint(NamedTuple):
    """A peer's `host:port`; the host is an IPv4 or IPv6 address (bare) or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _endpoint(text: str) -> Endpoint:
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*)):(\d{1,5})", text)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"{quote(text)} is not HOST:PORT or [IPV6]:PORT, port 1 to 65535")
    v6, host, port = match[1], match[2], int(match[3])
    try:
        if v6 is not None:
            return Endpoint(_bare_ipv6(v6), port)
        if re.fullmatch(r"[\d.]+", host):
            return Endpoint(str(IPv4Address(host)), port)
    except ValueError:
        raise ValueError(f"{quote(text)}: the host is not an IP address") from None
    if not _HOSTNAME.fullmatch(host):
        raise ValueError(f"{quote(text)}: the host is neither an IP address nor a host name")
    return Endpoint(host, port)


def _bare_ipv6(text: str) -> str:
    """A scope (fe80::1%eth0) is kept: the host's interface name means something to the engine."""
    address, _, scope = text.partition("%")
    if scope and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", scope):
        raise ValueError
    return str(IPv6Address(address)) + (f"%{scope}" if scope else "")


# ---------------------------------------------------------------- the models


class _Section(BaseModel):
    """One section; a field's alias is its key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Interface(_Section):
    private_key: Annotated[SecretBytes, BeforeValidator(_key)] = Field(alias="PrivateKey")
    listen_port: Annotated[int, BeforeValidator(_number(0, 65535))] = Field(0, alias="ListenPort")
    addresses: tuple[Annotated[Address, BeforeValidator(_address)], ...] = Field(
        alias="Address", min_length=1
    )
    dns: tuple[Annotated[IPv4Address | IPv6Address | str, BeforeValidator(_dns)], ...] = Field(
        (), alias="DNS"
    )
    mtu: Annotated[int | None, BeforeValidator(_number(MIN_MTU, MAX_MTU))] = Field(
        None, alias="MTU"
    )
    table: Annotated[Literal["auto", "off"], BeforeValidator(_table)] = Field("auto", alias="Table")


class Peer(_Section):
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

    def mtu(self, override: int | None = None) -> int:
        """The interface's MTU in bytes: the caller's, else the file's, else 1420.

        Raises InvalidConfig where the addresses need more (IPv6: 1280).
        """
        mtu = override or self.interface.mtu or DEFAULT_MTU
        has_ipv6 = any(a.version == 6 for a in self.interface.addresses)
        if has_ipv6 and mtu < IPV6_MIN_MTU:
            raise InvalidConfig(
                f"MTU: {mtu} is too small for IPv6: expected {IPV6_MIN_MTU} or more"
            )
        return mtu

    def routes(self) -> tuple[Network, ...]:
        """The networks to route into the interface: every allowed IP, once, unless `Table = off`.

        What an address's own prefix covers exactly is left out: the kernel adds that route itself.
        """
        if self.interface.table == "off":
            return ()
        connected = {a.network for a in self.interface.addresses}
        networks = (n for peer in self.peers for n in peer.allowed_ips)
        return tuple(n for n in dict.fromkeys(networks) if n not in connected)


# ---------------------------------------------------------------- the parser


class _Entry(NamedTuple):
    line: int
    text: str


class _RawSection(NamedTuple):
    model: type[_Section]
    line: int
    entries: dict[str, list[_Entry]]


_SectionT = TypeVar("_SectionT", bound=_Section)


def parse(data: bytes, ignore: Collection[str] = ()) -> Config:
    """Turn the bytes of a wg-quick file into a Config.

    `ignore` names keys of IGNORABLE that the caller can do without. Raises InvalidConfig.
    """
    sections = list(_sections(_decode(data), {key.lower() for key in ignore}))
    interfaces = [s for s in sections if s.model is Interface]
    if not interfaces:
        raise InvalidConfig(
            "no [Interface] section" if data.strip() else "the configuration is empty"
        )
    if len(interfaces) > 1:
        raise InvalidConfig(f"line {interfaces[1].line}: a second [Interface] section")
    interface = _validate(interfaces[0], Interface)
    raw_peers = [s for s in sections if s.model is Peer]
    config = Config(interface=interface, peers=tuple(_validate(s, Peer) for s in raw_peers))
    _refuse_clashes(config, raw_peers)
    config.mtu()
    return config


def _decode(data: bytes) -> str:
    if len(data) > MAX_SIZE:
        raise InvalidConfig(f"the configuration is longer than {MAX_SIZE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidConfig(f"line {line}: not UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidConfig(f"line {line}: a NUL byte: expected text")
    return text


def _sections(text: str, ignore: Collection[str]) -> Iterator[_RawSection]:
    current: _RawSection | None = None
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if current:
                yield current
            current = _RawSection(_model(line, number), number, {})
            continue
        if current is None:
            raise InvalidConfig(
                f"line {number}: expected [Interface] or [Peer] before anything else"
            )
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise InvalidConfig(f"line {number}: expected 'Key = value'")
        _add_entry(current, number, key, value, ignore)
    if current:
        yield current


def _model(header: str, number: int) -> type[_Section]:
    match header.lower():
        case "[interface]":
            return Interface
        case "[peer]":
            return Peer
        case _:
            raise InvalidConfig(
                f"line {number}: unknown section {quote(header)}: expected [Interface] or [Peer]"
            )


def _add_entry(
    section: _RawSection, number: int, key: str, value: str, ignore: Collection[str]
) -> None:
    ignorable = {name.lower(): name for name in IGNORABLE} if section.model is Interface else {}
    if key.lower() in ignorable and (
        value.lower() in _HARMLESS.get(key.lower(), ())
        or (key.lower() in ignore and value.lower() not in _TABLES)
    ):
        return
    aliases = {str(f.alias).lower(): str(f.alias) for f in section.model.model_fields.values()}
    alias = aliases.get(key.lower())
    if alias is None and key.lower() in ignorable:
        name = ignorable[key.lower()]
        raise InvalidConfig(
            f"line {number}: {name} can't be honoured by an unprivileged daemon: "
            f"remove it, or pass the option ignore=['{name}']"
        )
    if alias is None:
        # A mangled line may hold a key where the key's name should be, or its end: "bg8=".
        shown = f" '{key}'" if value and re.fullmatch(r"[A-Za-z]{1,24}", key) else ""
        raise InvalidConfig(f"line {number}: unknown key{shown} in [{section.model.__name__}]")
    entries = section.entries.setdefault(alias, [])
    if alias in _REPEATABLE:
        # wg(8): an empty AllowedIPs is valid, and means none.
        entries += [_Entry(number, part.strip()) for part in value.split(",")] if value else []
    elif entries:
        raise InvalidConfig(
            f"line {number}: {alias} is given twice, first in line {entries[0].line}"
        )
    elif not value:
        raise InvalidConfig(f"line {number}: {alias} has no value")
    else:
        entries.append(_Entry(number, value))


_REPEATABLE: Final = frozenset({"Address", "DNS", "AllowedIPs"})


def _validate(section: _RawSection, model: type[_SectionT]) -> _SectionT:
    values: dict[str, Any] = {
        alias: tuple(e.text for e in entries) if alias in _REPEATABLE else entries[0].text
        for alias, entries in section.entries.items()
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # include_input and include_context would put key material into our hands.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    alias = str(first["loc"][0])
    entries = section.entries.get(alias)
    if not entries:
        raise InvalidConfig(f"line {section.line}: [{model.__name__}] has no {alias}")
    index = next((part for part in first["loc"][1:] if isinstance(part, int)), 0)
    message = first["msg"].removeprefix("Value error, ")
    raise InvalidConfig(f"line {entries[index].line}: {alias}: {message}")


def _refuse_clashes(config: Config, sections: list[_RawSection]) -> None:
    """The engine would silently let the last one win."""
    owners: dict[str | Network, int] = {}
    for peer, section in zip(config.peers, sections, strict=True):
        first = owners.setdefault(peer.public_key, section.line)
        if first != section.line:
            raise InvalidConfig(
                f"line {section.line}: PublicKey: the peer of line {first} has the same one"
            )
        for network in peer.allowed_ips:
            first = owners.setdefault(network, section.line)
            if first != section.line:
                raise InvalidConfig(
                    f"line {section.line}: AllowedIPs: {network} already belongs to "
                    f"the peer of line {first}"
                )
