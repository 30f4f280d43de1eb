"""The wg-quick format: parse a text into a Config, and render a Config as text.

`parse()` returns only valid configurations. Its errors have the line, the key and the offending
value. Keys that need privileges are refused by name, unless the caller asks to ignore them. See
wg-quick(8) and wg(8) for the format.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import SecretBytes, ValidationError

from wg4netnsd.config.model import (
    TABLES,
    VALUE,
    Config,
    Endpoint,
    Interface,
    Network,
    Peer,
    Section,
)
from wg4netnsd.errors import InvalidConfig, LimitExceeded, may_hold_key, quote

MAX_SIZE: Final = 1 << 20
"""Bytes; twice as many as MAX_PEERS take."""

MAX_RENDERED: Final = 2 * MAX_SIZE
"""Bytes of render()'s text, which spells out the defaults that a file may omit."""

MAX_PEERS: Final = 4096
"""An engine needs 25 KiB for each, 100 MB for all. The reply of GetPeers then has 1.5 MB and blocks
the daemon for 0.1 s."""

MAX_REPEATED: Final = {"AllowedIPs": 16384, "Address": 1024, "DNS": 1024}
"""Values of a key in the whole configuration. The kernel needs 0.1 ms for each route, 1.5 s of the
20 s that a create has by default. Addresses and DNS are in every reply with a tunnel's
properties."""

IGNORABLE: Final = ("FwMark", "PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig", "Table")
"""Keys of wg-quick that need privileges (`Table` only with values other than auto and off)."""

_IGNORABLE: Final = {name.lower(): name for name in IGNORABLE}

_ALIASES: Final[dict[type[Section], dict[str, str]]] = {
    model: {str(f.alias).lower(): str(f.alias) for f in model.model_fields.values()}
    for model in (Interface, Peer)
}
"""Each section's keys as we spell them, by their lower case."""

_HARMLESS: Final = {"fwmark": ("off", "0", "0x0"), "saveconfig": ("false",)}
"""Values of ignorable keys that ask for nothing, so that they need no privileges."""


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

    `ignore`: keys of IGNORABLE to leave out; `max_size`: of `data`, in bytes.

    Raises InvalidConfig; or LimitExceeded, before any value is parsed.
    """
    sections = list(_sections(_decode(data, max_size), {key.lower() for key in ignore}))
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
    config = Config(interface=interface, peers=tuple(_validate(s, Peer) for s in raw_peers))
    _refuse_clashes(config, raw_peers)
    _refuse_repeated_addresses(interface, interfaces[0])
    try:
        config.mtu()
    except InvalidConfig as error:
        raise InvalidConfig(
            f"line {interfaces[0].entries['MTU'][0].line.number}: {error.text}"
        ) from None
    return config


def _refuse_too_many(sections: list[_RawSection]) -> None:
    peers = sum(section.model is Peer for section in sections)
    if peers > MAX_PEERS:
        raise LimitExceeded(f"{peers} [Peer] sections: at most {MAX_PEERS}")
    for key, most in MAX_REPEATED.items():
        values = sum(len(section.entries.get(key, ())) for section in sections)
        if values > most:
            raise LimitExceeded(f"{key}: {values} values: at most {most}")


def _decode(data: bytes, max_size: int) -> str:
    if len(data) > max_size:
        raise LimitExceeded(f"the configuration is longer than {max_size} bytes")
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


def _model(header: str, number: int, raw: str) -> type[Section]:
    match header.lower():
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
    ignorable = _IGNORABLE if section.model is Interface else {}
    if key.lower() in ignorable and (
        value.lower() in _HARMLESS.get(key.lower(), ())
        or (key.lower() in ignore and value.lower() not in TABLES)
    ):
        return
    alias = _ALIASES[section.model].get(key.lower())
    if alias is None and key.lower() in ignorable:
        name = ignorable[key.lower()]
        raise InvalidConfig(
            f"line {number}: {name} needs privileges that wg4netnsd does not have: "
            f"remove it, or pass the option ignore=['{name}']"
        )
    if alias is None:
        raise InvalidConfig(
            f"line {number}: unknown key{_shown_key(key, line)} in [{section.model.__name__}]"
        )
    entries = section.entries.setdefault(alias, [])
    if alias in MAX_REPEATED:
        values = _split(alias, value)
        if len(values) > MAX_REPEATED[alias]:
            raise LimitExceeded(f"{alias}: {len(values)} values: at most {MAX_REPEATED[alias]}")
        entries += [_Entry(line, text) for text in values]
    elif entries:
        raise InvalidConfig(
            f"line {number}: {alias} is given twice, first in line {entries[0].line.number}"
        )
    elif not value:
        raise InvalidConfig(f"line {number}: {alias} has no value")
    else:
        entries.append(_Entry(line, value))


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
