"""What a client sees of a tunnel before and after its daemon's end."""

import enum
from dataclasses import dataclass
from typing import Self

from support.bus import Client
from support.installed import state
from support.manager import UserManager
from support.namespaces import Namespace
from support.processes import is_alive, of_program, wait_for


class Then(enum.Enum):
    """What becomes of a tunnel."""

    AS_IT_WAS = enum.auto()  # with its engine, and so its sessions
    NEW_ENGINE = enum.auto()  # on the same interface
    ENDED = enum.auto()


@dataclass(frozen=True)
class Seen:
    engine: int
    restarts: int
    port: int

    @classmethod
    def of(cls, client: Client, path: str) -> Self:
        """Once it is up."""
        client.tunnel(path, "WaitForState", "ast", ["up"], 30_000_000)
        shown = client.get_all(path)
        return cls(shown["EnginePID"], shown["RestartCount"], shown["ListenPort"])


@dataclass
class Tunnel:
    """One that a daemon has made."""

    inside: Namespace
    path: str
    before: Seen

    def assert_then(self, then: Then, client: Client) -> None:
        """What has become of it by now, or soon."""
        if then is Then.ENDED:
            wait_for(lambda: state(client, self.path) == "", "it has ended")
            assert not is_alive(self.before.engine)
            return
        now = Seen.of(client, self.path)
        if then is Then.AS_IT_WAS:
            assert now == self.before
        else:
            assert not is_alive(self.before.engine)
            assert (now.restarts, now.port) == (self.before.restarts + 1, self.before.port)
            assert client.get(self.path, "LastError")[1].startswith(("EngineFailed: ", "Timeout: "))


def assert_no_strays(manager: UserManager, client: Client) -> None:
    """Every engine is a tunnel's, and one waits for a tunnel to come."""
    known = {client.get(path, "EnginePID") for _, path, _ in client.tunnels()}
    wait_for(lambda: len(of_program("wireguard-go") - known) == 1, "no engine without a tunnel")
    assert of_program("wireguard-go") <= manager.processes("wg4netnsd.service")
