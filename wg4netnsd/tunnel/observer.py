"""The observer that a tunnel reports its changes to, after each change."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from wg4netnsd.peers.peer import PeerObserver
from wg4netnsd.tunnel.forwards import ForwardsObserver
from wg4netnsd.tunnel.lifecycle import State


class TunnelObserver(PeerObserver, ForwardsObserver, Protocol):
    def state_changed(self, new: State, old: State, reason: str) -> None: ...

    def properties_changed(self, names: Collection[str]) -> None: ...
