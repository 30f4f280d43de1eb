"""The options of CreateTunnel and Reconfigure, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from wg4netnsd import names
from wg4netnsd.bus.server import Variant
from wg4netnsd.config.model import MAX_MTU, MIN_MTU
from wg4netnsd.config.wgquick import IGNORABLE
from wg4netnsd.errors import InvalidArgs, quote
from wg4netnsd.tunnel.lifetime import Lifetime

_SIGNATURES: Final = {
    "name": "s",
    "interface": "s",
    "lifetime": "s",
    "lease": "h",
    "mtu": "u",
    "wait": "s",
    "timeout_usec": "t",
    "ignore": "as",
}
_RECONFIGURE: Final = ("mtu", "ignore")
_WAIT: Final = ("up", "handshake")


@dataclass(frozen=True)
class Options:
    """`lease` is an index into the call's fds; no `name` means one made from the namespace."""

    name: str | None = None
    interface: str = "wg0"
    lifetime: Lifetime = Lifetime.NAMESPACE
    lease: int | None = None
    mtu: int | None = None
    handshake: bool = False
    timeout_usec: int = 20_000_000  # less than a client's usual 25 s
    ignore: tuple[str, ...] = ()


def parse(
    options: dict[str, Variant], known_options: Collection[str] = _SIGNATURES.keys()
) -> Options:
    """Those of CreateTunnel. Raises InvalidArgs, naming the option."""
    values: dict[str, Any] = {}
    for key, variant in options.items():
        if key not in known_options:
            known = ", ".join(known_options)
            raise InvalidArgs(f"unknown option {quote(key)}: expected one of {known}")
        if variant.signature != _SIGNATURES[key]:
            raise _refuse(key, f"expected type {_SIGNATURES[key]}, got {variant.signature[:32]}")
        values[key] = variant.value
    if (wait := values.pop("wait", "up")) not in _WAIT:
        raise _refuse("wait", "expected 'up' or 'handshake'")
    values["handshake"] = wait == "handshake"
    if "lifetime" in values:
        values["lifetime"] = _lifetime(values["lifetime"])
    if "ignore" in values:
        values["ignore"] = tuple(values["ignore"])
    parsed = Options(**values)
    _check(parsed)
    return parsed


def parse_reconfigure(options: dict[str, Variant]) -> Options:
    """Those of Reconfigure, a part of the others. Raises InvalidArgs, naming the option."""
    return parse(options, _RECONFIGURE)


def _lifetime(value: str) -> Lifetime:
    try:
        return Lifetime(value)
    except ValueError:
        known = " or ".join(f"'{lifetime}'" for lifetime in Lifetime)
        raise _refuse("lifetime", f"expected {known}") from None


def _check(options: Options) -> None:
    if options.name is not None and not names.TUNNEL_NAME.fullmatch(options.name):
        raise _refuse("name", "expected 1 to 48 of [A-Za-z0-9_.@-], the first a letter or digit")
    if not names.INTERFACE_NAME.fullmatch(options.interface) or options.interface in (".", ".."):
        raise _refuse("interface", "expected 1 to 15 of [A-Za-z0-9_=+.-]")
    if (options.lifetime is Lifetime.LEASE) != (options.lease is not None):
        raise _refuse("lease", "expected with lifetime 'lease', and only there")
    if options.mtu is not None and not MIN_MTU <= options.mtu <= MAX_MTU:
        raise _refuse("mtu", f"{options.mtu}: expected {MIN_MTU} to {MAX_MTU}")
    if not options.timeout_usec:
        raise _refuse("timeout_usec", "expected more than 0")
    for key in options.ignore:
        if key.lower() not in map(str.lower, IGNORABLE):
            raise _refuse("ignore", f"{quote(key)}: expected some of {', '.join(IGNORABLE)}")


def _refuse(option: str, expected: str) -> InvalidArgs:
    return InvalidArgs(f"option '{option}': {expected}")
