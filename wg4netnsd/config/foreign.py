"""Keys of other programs' files: whose they are, and which of them a tunnel can do without.

wg-quick's own keys that need privileges are here too: to us they are another program's.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class ForeignKey(NamedTuple):
    name: str
    why: str
    """Why a file with this key is refused; it continues a sentence that begins with the name."""
    harmless: tuple[str, ...] = ()
    """Values, in lower case, that ask for nothing, so that the file is taken with them."""
    ignorable: bool = True
    """Whether the tunnel works without it."""


_PRIVILEGED: Final = "needs privileges that wg4netnsd does not have"
_ANDROID: Final = "belongs to WireGuard for Android, and chooses the apps that use the tunnel"
_JUNK: Final = "belongs to AmneziaWG, and only hides that this is WireGuard"
_AMNEZIA: Final = "belongs to AmneziaWG, and changes messages so that wireguard-go cannot read them"
_WARP: Final = "belongs to Cloudflare's WARP, and changes messages as wireguard-go cannot"

_OF_INTERFACE: Final = (
    # Where one of these has no value, wg-quick(8) does nothing either.
    ForeignKey("FwMark", _PRIVILEGED, ("off", "0", "0x0")),
    ForeignKey("PreUp", _PRIVILEGED, ("",)),
    ForeignKey("PostUp", _PRIVILEGED, ("",)),
    ForeignKey("PreDown", _PRIVILEGED, ("",)),
    ForeignKey("PostDown", _PRIVILEGED, ("",)),
    ForeignKey("SaveConfig", _PRIVILEGED, ("false",)),
    ForeignKey("Table", _PRIVILEGED),  # with other values than ours
    ForeignKey("IncludedApplications", _ANDROID, ("",)),
    ForeignKey("ExcludedApplications", _ANDROID, ("",)),
    # Packets of junk that AmneziaWG sends before a handshake; a far end drops them.
    *(ForeignKey(name, _JUNK, ("", "0")) for name in ("Jc", "Jmin", "Jmax")),
    *(ForeignKey(f"I{n}", _JUNK, ("",)) for n in range(1, 6)),
    # Bytes in front of a message, and the number of its type: with these values it is WireGuard's.
    *(ForeignKey(f"S{n}", _AMNEZIA, ("", "0"), ignorable=False) for n in range(1, 5)),
    *(ForeignKey(f"H{n}", _AMNEZIA, ("", str(n)), ignorable=False) for n in range(1, 5)),
)
_OF_PEER: Final = (
    ForeignKey("AdvancedSecurity", _AMNEZIA, ("off",), ignorable=False),
    ForeignKey("Reserved", _WARP, ("0,0,0", "0, 0, 0"), ignorable=False),
)

OF_INTERFACE: Final = {key.name.lower(): key for key in _OF_INTERFACE}
OF_PEER: Final = {key.name.lower(): key for key in _OF_PEER}
"""The keys of each section, by their lower case."""

IGNORABLE: Final = tuple(key.name for key in _OF_INTERFACE if key.ignorable)
"""Keys that the option `ignore` takes."""

IPV6: Final = "IPv6"
"""Not a key, but `ignore` takes it, too: all of Address, DNS and AllowedIPs that is IPv6."""
