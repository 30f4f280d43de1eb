"""A forward: what its creator asked for, and the sockets that it listens on."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wg4netnsd.gateway.protocol import AddForward


class ForwardSpec(BaseModel):
    """A forward as it is recorded. `repr()` shows no password's hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: Literal["proxy", "local", "remote"]
    protocol: Literal["tcp", "udp"] = "tcp"
    listen: tuple[str, ...] = ()
    """Addresses to listen on; for `remote` also a port alone. Empty if sockets were passed."""
    target: str = ""
    access: Literal["user", "anyone"] = "user"
    credentials: dict[str, str] = Field(default={}, repr=False)
    """Each user's password, as SHA-256 in hex."""
    proxy_protocol: bool = False
    idle_seconds: float = 0
    connect_seconds: float = 30
    id: str = ""
    listeners: tuple[int, ...] = ()
    """The numbers of its listeners in the fd store."""
    paths: dict[str, int] = {}
    """The Unix sockets that were created for it, and their inodes."""

    def request(self, listen: list[tuple[str, int]]) -> AddForward:
        """Return the gateway's request. `listen`: the addresses of a `remote` one."""
        return AddForward(
            id=self.id,
            kind=self.kind,
            protocol=self.protocol,
            target=self.target,
            listen=listen,
            access=self.access,
            credentials=self.credentials,
            proxy_protocol=self.proxy_protocol,
            idle_seconds=self.idle_seconds,
            connect_seconds=self.connect_seconds,
        )


@dataclass(eq=False)
class Forward:
    """One forward of a tunnel. Owns its listeners: the gateway has copies of them."""

    spec: ForwardSpec
    listeners: list[socket.socket] = field(default_factory=list)

    @property
    def listening(self) -> list[str]:
        """The addresses that it listens on."""
        return [describe(each) for each in self.listeners]

    def close(self) -> None:
        for each in self.listeners:
            each.close()


def describe(listener: socket.socket) -> str:
    """Return a listener's address: `127.0.0.1:1080`, `[::1]:1080`, `unix:/path`."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return (
        f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    )
