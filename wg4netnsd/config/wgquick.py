"""The wg-quick format: parse a text into a Config, and render a Config as text.

`parse()` returns only valid configurations. Its errors have the line, the key and the offending
value. Keys that need privileges are refused by name, unless the caller asks to ignore them. See
wg-quick(8) and wg(8) for the format.
"""

from __future__ import annotations

import base64
import codecs
import logging
import re
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import SecretBytes, ValidationError

from wg4netnsd.config import foreign
from wg4netnsd.config.foreign import ForeignKey
from wg4netnsd.config.model import (
    TABLES,
    VALUE,
    Config,
    Endpoint,
    Interface,
    Network,
    Peer,
    Section,
    is_host_name,
)
from wg4netnsd.errors import InvalidConfig, LimitExceeded, may_hold_key, quote

log = logging.getLogger(__name__)

MAX_SIZE: Final = 2 << 20
"""Bytes; MAX_PEERS take a quarter of that, and the longest list of AllowedIPs 1.2 MB."""

MAX_RENDERED: Final = 2 * MAX_SIZE
"""Bytes of render()'s text, which spells out the defaults that a file may omit."""

MAX_PEERS: Final = 4096
"""An engine needs 25 KiB for each, 100 MB for all. The reply of GetPeers then has 1.5 MB and blocks
the daemon for 0.1 s."""

MAX_REPEATED: Final = {"AllowedIPs": 65536, "Address": 1024, "DNS": 1024}
"""Values of a key in the whole configuration. Lists of all networks but one country's have half as
many AllowedIPs. A route takes 0.1 ms, by which all take 9 s of the 20 s that a create has by
default. Addresses and DNS are in every reply with a tunnel's
properties."""

_FOREIGN: Final[dict[type[Section], dict[str, ForeignKey]]] = {
    Interface: foreign.OF_INTERFACE,
    Peer: foreign.OF_PEER,
}

_ALIASES: Final[dict[type[Section], dict[str, str]]] = {
    model: {str(f.alias).lower(): str(f.alias) for f in model.model_fields.values()}
    for model in (Interface, Peer)
}
"""Each section's keys as we spell them, by their lower case."""

_MAY_BE_EMPTY: Final = ("MTU", "Table")
"""Keys that wg-quick(8) takes for missing when they have no value. It only stores them; wg(8)
refuses its own keys without a value."""


class _Line(NamedTuple):
    number: int
    text: str
    """The whole line, with its comment."""
    value: str


class _Entry(NamedTuple):
    line: _Line
    text: str
    """The line's value, or one of several in it."""

    @property
    def quoted(self) -> str:
        return quote(self.text, self.line.value, self.line.text)


class _RawSection(NamedTuple):
    model: type[Section]
    line: int
    entries: dict[str, list[_Entry]]


SectionT = TypeVar("SectionT", bound=Section)


def parse(data: bytes, ignore: Collection[str] = (), max_size: int = MAX_SIZE) -> Config:
    """Turn the bytes of a wg-quick file into a Config.

    `ignore`: keys of IGNORABLE to leave out, or foreign.IPV6; `max_size`: of `data`, in bytes.

    Raises InvalidConfig; or LimitExceeded, before any value is parsed.
    """
    ignored = {key.lower() for key in ignore}
    sections = list(_sections(_decode(data, max_size), ignored))
    if foreign.IPV6.lower() in ignored:
        _drop_ipv6(sections)
    _refuse_too_many(sections)
    interfaces = [s for s in sections if s.model is Interface]
    if not interfaces:
        raise InvalidConfig(
            "no [Interface] section" if data.strip() else "the configuration is empty"
        )
    if len(interfaces) > 1:
        raise InvalidConfig(f"line {interfaces[1].line}: a second [Interface] section")
    interface = _validate(interfaces[0], Interface)
    raw_peers = [s for s in sections if s.model is Peer]
    config = Config(
        interface=interface,
        peers=tuple(_validate(section, Peer) for section in raw_peers),
        peer_lines=tuple(section.line for section in raw_peers),
    )
    _refuse_clashes(config, raw_peers)
    _refuse_repeated_addresses(interface, interfaces[0])
    try:
        config.mtu()
    except InvalidConfig as error:
        raise InvalidConfig(
            f"line {interfaces[0].entries['MTU'][0].line.number}: {error.text}"
        ) from None
    return config


def _drop_ipv6(sections: list[_RawSection]) -> None:
    for section in sections:
        for key in MAX_REPEATED.keys() & section.entries.keys():
            section.entries[key][:] = [e for e in section.entries[key] if ":" not in e.text]


def _refuse_too_many(sections: list[_RawSection]) -> None:
    peers = sum(section.model is Peer for section in sections)
    if peers > MAX_PEERS:
        raise LimitExceeded(f"{peers} [Peer] sections: at most {MAX_PEERS}")
    for key, most in MAX_REPEATED.items():
        values = sum(len(section.entries.get(key, ())) for section in sections)
        if values > most:
            raise LimitExceeded(f"{key}: {values} values: at most {most}")


def _decode(data: bytes, max_size: int) -> str:
    """Return the file's text. Bytes that are not UTF-8 become surrogates: comments may hold any."""
    if len(data) > max_size:
        raise LimitExceeded(f"the configuration is longer than {max_size} bytes")
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-8-sig", "surrogateescape")
    try:  # as Windows' Notepad saves "Unicode"
        return data.decode("utf-16")
    except UnicodeDecodeError:
        raise InvalidConfig("it begins with UTF-16's byte order mark, but is not UTF-16") from None


def _sections(text: str, ignore: Collection[str]) -> Iterator[_RawSection]:
    current: _RawSection | None = None
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        _refuse_binary(line, number)
        if line.startswith("["):
            if current:
                yield current
            current = _RawSection(_model(line, number, raw), number, {})
            continue
        if current is None:
            raise InvalidConfig(
                f"line {number}: expected [Interface] or [Peer] before anything else"
            )
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise InvalidConfig(f"line {number}: expected 'Key = value'")
        _add_entry(current, key, _Line(number, raw, value), ignore)
    if current:
        yield current


def _refuse_binary(line: str, number: int) -> None:
    if "\0" in line:
        raise InvalidConfig(f"line {number}: a NUL byte: expected text")
    if any("\udc80" <= character <= "\udcff" for character in line):
        raise InvalidConfig(f"line {number}: not UTF-8 text")


def _model(header: str, number: int, raw: str) -> type[Section]:
    match re.sub(r"\s", "", header).lower():  # wg(8) drops all blanks, too
        case "[interface]":
            return Interface
        case "[peer]":
            return Peer
        case _:
            shown = quote(header, line=raw)
            raise InvalidConfig(
                f"line {number}: unknown section {shown}: expected [Interface] or [Peer]"
            )


def _add_entry(section: _RawSection, key: str, line: _Line, ignore: Collection[str]) -> None:
    number, value = line.number, line.value
    alias = _ALIASES[section.model].get(key.lower())
    foreign_key = _FOREIGN[section.model].get(key.lower())
    if foreign_key and value.lower() in foreign_key.harmless:
        return
    if foreign_key and key.lower() in ignore and not (alias and value.lower() in TABLES):
        return
    if alias is None and foreign_key:
        raise InvalidConfig(f"line {number}: {_describe(foreign_key)}")
    if alias is None:
        raise InvalidConfig(
            f"line {number}: unknown key{_shown_key(key, line)} in [{section.model.__name__}]"
        )
    if alias in _MAY_BE_EMPTY and not value:
        return
    entries = section.entries.setdefault(alias, [])
    if alias in MAX_REPEATED:
        values = _split(alias, value)
        if len(values) > MAX_REPEATED[alias]:
            raise LimitExceeded(f"{alias}: {len(values)} values: at most {MAX_REPEATED[alias]}")
        entries += [_Entry(line, text) for text in values if not _is_route_only(alias, text, line)]
    elif entries:
        raise InvalidConfig(
            f"line {number}: {alias} is given twice, first in line {entries[0].line.number}"
        )
    elif not value:
        raise InvalidConfig(f"line {number}: {alias} has no value")
    else:
        entries.append(_Entry(line, value))


def _describe(key: ForeignKey) -> str:
    """Return why a file with this key is refused, and the way out."""
    if not key.ignorable:
        return f"{key.name} {key.why}: expected a configuration of plain WireGuard"
    return f"{key.name} {key.why}: remove it, or pass the option ignore=['{key.name}']"


def _shown_key(key: str, line: _Line) -> str:
    """Return an unknown key as the error may show it.

    Empty if it may be a secret key or its end: the line may be a mangled one, as in `bg8=`.
    """
    is_name = line.value and re.fullmatch(r"[A-Za-z]{1,24}", key)
    return f" '{key}'" if is_name and not may_hold_key(key, line=line.text) else ""


def _split(alias: str, value: str) -> list[str]:
    if alias == "AllowedIPs":
        # wg(8) reads this key: an empty value is valid and means none.
        return [part.strip() for part in value.split(",")] if value else []
    return value.replace(",", " ").split()  # as wg-quick(8) does: commas or blanks


def _is_route_only(alias: str, text: str, line: _Line) -> bool:
    """Return whether it is a domain that only routes look-ups, in systemd-resolved's notation.

    Such a domain chooses between links' resolvers. A tunnel has one, which gets all look-ups.
    """
    if alias != "DNS" or not text.startswith("~"):
        return False
    domain = text[1:]
    if domain != "." and not is_host_name(domain):
        return False
    log.warning("line %d: DNS: '%s' has no effect: all look-ups go there", line.number, text)
    return True


def _validate(section: _RawSection, model: type[SectionT]) -> SectionT:
    values: dict[str, Any] = {
        alias: tuple(e.text for e in entries) if alias in MAX_REPEATED else entries[0].text
        for alias, entries in section.entries.items()
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # include_input and include_context would add key material.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    alias = str(first["loc"][0])
    entries = section.entries.get(alias)
    if not entries:
        raise InvalidConfig(f"line {section.line}: [{model.__name__}] has no {alias}")
    index = next((part for part in first["loc"][1:] if isinstance(part, int)), 0)
    entry = entries[index]
    message = first["msg"].removeprefix("Value error, ").replace(VALUE, entry.quoted)
    raise InvalidConfig(f"line {entry.line.number}: {alias}: {message}")


def _refuse_repeated_addresses(interface: Interface, section: _RawSection) -> None:
    """Refuse an address that is given twice; the kernel's own error would be less clear."""
    lines: dict[object, int] = {}
    for address, entry in zip(interface.addresses, section.entries["Address"], strict=True):
        if address.ip in lines:
            raise InvalidConfig(
                f"line {entry.line.number}: Address: {address.ip} is given twice, "
                f"first in line {lines[address.ip]}"
            )
        lines[address.ip] = entry.line.number


def _refuse_clashes(config: Config, sections: list[_RawSection]) -> None:
    """Refuse a public key or network of two peers: the engine would silently use the last one."""
    owners: dict[str | Network, int] = {}
    for peer, section in zip(config.peers, sections, strict=True):
        first = owners.setdefault(peer.public_key, section.line)
        if first != section.line:
            raise InvalidConfig(
                f"line {section.line}: PublicKey: the peer in line {first} has the same key"
            )
        for network in peer.allowed_ips:
            first = owners.setdefault(network, section.line)
            if first != section.line:
                raise InvalidConfig(
                    f"line {section.line}: AllowedIPs: {network} already belongs to "
                    f"the peer in line {first}"
                )


# ---------------------------------------------------------------- a Config as text


def render(config: Config) -> str:
    """Return a text that parse() turns into this Config, with a `max_size` of MAX_RENDERED.

    It holds the private keys.
    """
    sections = [("[Interface]", config.interface), *(("[Peer]", peer) for peer in config.peers)]
    return "".join(f"{title}\n{_render(section)}" for title, section in sections)


def _render(section: Section) -> str:
    values = (
        (field.alias, getattr(section, name)) for name, field in type(section).model_fields.items()
    )
    return "".join(f"{key} = {_text(value)}\n" for key, value in values if value not in (None, ()))


def _text(value: Any) -> str:
    match value:
        case SecretBytes():
            return base64.b64encode(value.get_secret_value()).decode()
        case tuple() if not isinstance(value, Endpoint):
            return ", ".join(map(str, value))
        case _:
            return str(value)
