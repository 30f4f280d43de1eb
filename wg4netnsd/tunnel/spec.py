"""A tunnel's specification: what its creator asked for, and its current configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from wg4netnsd.agent.protocol import InterfaceSettings
from wg4netnsd.config.model import PATH_MTU, Address, Config, Dns, Peer
from wg4netnsd.tunnel.lifetime import Lifetime
from wg4netnsd.tunnel.transit import HOST, TransitSpec


@dataclass(frozen=True)
class Spec:
    VISIBLE: ClassVar = ("mtu", "addresses", "dns", "peers", "transit")
    """Attributes that a reconfiguration can change and a client can see."""

    name: str
    interface: str
    lifetime: Lifetime
    config: Config
    mtu_option: int | None = None  # overrides the configuration's MTU
    handshake: bool = False  # begin a handshake with each peer at once
    client: str = ""  # for Lifetime.CLIENT: the bus's ID and the client's name on it
    path_mtu: int = PATH_MTU  # of the paths to the peers; decides if nobody has said an MTU
    transit: TransitSpec = HOST  # where the ciphertext goes
    root_trusted: bool = False  # the creator has the namespace for itself; we only pass this on

    mtu: int = field(init=False)
    """The interface's MTU in bytes."""

    def __post_init__(self) -> None:
        """Set `mtu`. Raises InvalidConfig if it is too small for the addresses."""
        object.__setattr__(self, "mtu", self.config.mtu(self.mtu_option, self.path_mtu))

    @property
    def follows_path(self) -> bool:
        """Whether `mtu` follows `path_mtu`: neither the file nor the creator says one."""
        return not (self.mtu_option or self.config.interface.mtu)

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self.config.interface.addresses

    @property
    def dns(self) -> tuple[Dns, ...]:
        return self.config.interface.dns

    @property
    def name_servers(self) -> list[str]:
        return [str(entry) for entry in self.dns if not isinstance(entry, str)]

    @property
    def search_domains(self) -> list[str]:
        return [entry for entry in self.dns if isinstance(entry, str)]

    @property
    def peers(self) -> tuple[Peer, ...]:
        return self.config.peers

    @property
    def settings(self) -> InterfaceSettings:
        """The settings of the interface."""
        return InterfaceSettings(
            mtu=self.mtu,
            addresses=[str(address) for address in self.addresses],
            routes=[str(network) for network in self.config.routes()],
            unroutable=[str(network) for network in self.config.unroutable()],
        )
