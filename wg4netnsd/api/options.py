"""The options of CreateTunnel and Reconfigure: declared once, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Final

from wg4netnsd import names
from wg4netnsd.bus.codec import Variant
from wg4netnsd.config.foreign import IGNORABLE, IPV6
from wg4netnsd.config.model import MAX_MTU, MIN_MTU
from wg4netnsd.errors import InvalidArgs, quote
from wg4netnsd.tunnel.lifetime import Lifetime

_WAIT: Final = ("up", "handshake")


def _type(signature: str, reconfigure: bool = False) -> dict[str, Any]:
    """Return an option's metadata: its D-Bus type, and whether Reconfigure has it too."""
    return {"signature": signature, "reconfigure": reconfigure}


@dataclass(frozen=True)
class Options:
    """The options of CreateTunnel, by their names on the bus.

    To add one: a field here, its description in contrib/dbus/org.wg4netns1.Manager.xml, and where
    it takes effect, mostly Spec, which ManagerObject makes of the options.
    tests/unit/api/test_options.py then names every place that lacks it: man pages, completions,
    wg4netnsctl. An option that outlives the daemon is in Record, too.
    """

    name: str | None = field(default=None, metadata=_type("s"))
    """None: one made from the namespace."""
    interface: str = field(default="wg0", metadata=_type("s"))
    lifetime: Lifetime = field(default=Lifetime.NAMESPACE, metadata=_type("s"))
    lease: int | None = field(default=None, metadata=_type("h"))
    """An index into the call's fds."""
    mtu: int | None = field(default=None, metadata=_type("u", reconfigure=True))
    """None: the configuration's."""
    wait: str = field(default="up", metadata=_type("s"))
    timeout_usec: int = field(default=20_000_000, metadata=_type("t"))
    """The default is less than the 25 s that most clients wait."""
    ignore: tuple[str, ...] = field(default=(), metadata=_type("as", reconfigure=True))
    trust_root: bool = field(default=False, metadata=_type("b"))
    transit: int | None = field(default=None, metadata=_type("h", reconfigure=True))
    """Like `lease`, as are all of `transit_sockets`."""
    transit_sockets: tuple[int, ...] | None = field(
        default=None, metadata=_type("ah", reconfigure=True)
    )
    transit_tunnel: str | None = field(default=None, metadata=_type("s", reconfigure=True))
    """Empty: none, but the host's network."""

    @property
    def handshake(self) -> bool:
        """Whether to wait for a handshake, and so to begin one."""
        return self.wait == "handshake"

    @property
    def transits(self) -> list[str]:
        """The names of the options that choose a transit."""
        return [name for name in TRANSITS if getattr(self, name) is not None]


SIGNATURES: Final = {each.name: each.metadata["signature"] for each in fields(Options)}
"""The D-Bus type of each option."""

OF_RECONFIGURE: Final = [each.name for each in fields(Options) if each.metadata["reconfigure"]]


TRANSITS: Final = ("transit", "transit_sockets", "transit_tunnel")


def parse(options: dict[str, Variant], known_options: Collection[str] = SIGNATURES) -> Options:
    """Check the options of CreateTunnel. Raises InvalidArgs, naming the option."""
    values: dict[str, Any] = {}
    for name, variant in options.items():
        if name not in known_options:
            known = ", ".join(known_options)
            raise InvalidArgs(f"unknown option {quote(name)}: expected one of {known}")
        if variant.signature != SIGNATURES[name]:
            raise _invalid(name, f"expected type {SIGNATURES[name]}, got {variant.signature[:32]}")
        values[name] = variant.value
    if "lifetime" in values:
        values["lifetime"] = _lifetime(values["lifetime"])
    if "ignore" in values:
        values["ignore"] = tuple(values["ignore"])
    if "transit_sockets" in values:
        values["transit_sockets"] = tuple(values["transit_sockets"])
    parsed = Options(**values)
    _check(parsed)
    return parsed


def parse_reconfigure(options: dict[str, Variant]) -> Options:
    """Check the options of Reconfigure. Raises InvalidArgs, naming the option."""
    return parse(options, OF_RECONFIGURE)


def _lifetime(value: str) -> Lifetime:
    try:
        return Lifetime(value)
    except ValueError:
        known = " or ".join(f"'{lifetime}'" for lifetime in Lifetime)
        raise _invalid("lifetime", f"expected {known}") from None


def _check(options: Options) -> None:
    if options.wait not in _WAIT:
        raise _invalid("wait", "expected 'up' or 'handshake'")
    if options.name is not None and not names.TUNNEL_NAME.fullmatch(options.name):
        raise _invalid("name", "expected 1 to 48 of [A-Za-z0-9_.@-], the first a letter or digit")
    if not names.INTERFACE_NAME.fullmatch(options.interface) or options.interface in (".", ".."):
        raise _invalid("interface", "expected 1 to 15 of [A-Za-z0-9_=+.-]")
    if (options.lifetime is Lifetime.LEASE) != (options.lease is not None):
        raise _invalid("lease", "expected with lifetime 'lease', and only there")
    if options.mtu is not None and not MIN_MTU <= options.mtu <= MAX_MTU:
        raise _invalid("mtu", f"{options.mtu}: expected {MIN_MTU} to {MAX_MTU}")
    if not options.timeout_usec:
        raise _invalid("timeout_usec", "expected more than 0")
    if len(options.transits) > 1:
        raise _invalid(options.transits[1], f"expected only one of {', '.join(TRANSITS)}")
    if options.transit_sockets is not None and len(options.transit_sockets) not in (1, 2):
        count = len(options.transit_sockets)
        raise _invalid("transit_sockets", f"{count} sockets: expected one of each family, or one")
    possible = (*IGNORABLE, IPV6)
    for key in options.ignore:
        if key.lower() not in map(str.lower, possible):
            raise _invalid("ignore", f"{quote(key)}: expected some of {', '.join(possible)}")


def _invalid(option: str, expected: str) -> InvalidArgs:
    return InvalidArgs(f"option '{option}': {expected}")
