"""Configurations that need no far end, and the keys in them that nobody may ever see."""

import base64
import os
from collections.abc import Iterator


def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


SHOWN = 12
"""Characters of a key in a row that are no coincidence, in hex neither."""


class Secrets:
    """Makes configurations, and remembers their private and preshared keys."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def new(self) -> str:
        made = key()
        self._known.add(made)
        return made

    def conf(self, interface: str = "Address = 10.9.0.2/24", peer: str | None = "") -> str:
        """One with these lines in its sections; peer=None: without a peer."""
        text = f"[Interface]\nPrivateKey = {self.new()}\n{interface}\n"
        if peer is not None:
            text += f"[Peer]\nPublicKey = {key()}\nPresharedKey = {self.new()}\n{peer}\n"
        return text

    def shapes(self) -> Iterator[str]:
        """Each, as base64 and as hex."""
        for secret in self._known:
            yield secret.rstrip("=")
            yield base64.b64decode(secret).hex()

    def assert_hidden_in(self, text: str) -> None:
        """Not so much as a part of one."""
        for shape in self.shapes():
            for at in range(len(shape) - SHOWN + 1):
                assert shape[at : at + SHOWN] not in text
