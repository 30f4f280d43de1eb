"""What is asked while there is no daemon: the bus keeps it for the next one, and that answers."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from support import tunnels
from support.bus import Client, DBusError
from support.configs import Secrets
from support.crowd import CLOSED, Outcomes, by_clients, engines_of, interfaces
from support.daemon import SOON
from support.installed import main_pid, wait_successor
from support.journal import Journal
from support.manager import UNIT, UserManager
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import is_alive, wait_for
from support.stage import Stage
from wg4netnsd.names import tunnel_path

LOST = "NoReply"
"""The bus's answer for a call that the old daemon had got already."""


def kill(manager: UserManager, client: Client) -> int:
    """SIGKILL the daemon; its pid. On return, the bus keeps what is sent for the next one."""
    pid = main_pid(manager)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not client.has_owner(), "the bus has noticed")
    return pid


# ---------------------------------------------------------------- one call


@dataclass
class Kept:
    """A tunnel whose daemon is being replaced."""

    client: Client
    inside: Namespace
    stage: Stage
    path: str
    engine: int

    def works(self) -> None:
        assert self.client.get(self.path, "State") == "up"
        ping(self.inside, self.stage.far.ipv4)

    def is_gone(self) -> None:
        assert self.client.tunnels() == []
        assert interfaces(self.inside.pid) == set()
        assert not is_alive(self.engine)


def close(kept: Kept) -> None:
    kept.client.close_tunnel(kept.path)
    kept.is_gone()


def restart(kept: Kept) -> None:
    kept.client.tunnel(kept.path, "Restart")
    assert kept.client.get(kept.path, "EnginePID") not in (0, kept.engine)
    assert not is_alive(kept.engine)
    kept.works()


def reconfigure(kept: Kept) -> None:
    tunnels.reconfigure(kept.client, kept.path, kept.stage.conf(0, MTU="1300"))
    assert kept.inside.links()["wg0"]["mtu"] == 1300 == kept.client.get(kept.path, "Mtu")
    assert kept.client.get(kept.path, "EnginePID") == kept.engine
    kept.works()


def create_beside(kept: Kept) -> None:
    with pytest.raises(DBusError, match="AlreadyExists"):
        kept.client.create(kept.inside, Secrets().conf(), interface="wg1")
    assert interfaces(kept.inside.pid) == {"wg0"}
    kept.works()


def get_peers(kept: Kept) -> None:
    (peer,) = kept.client.peers(kept.path).values()
    assert peer["state"] == "active"
    assert peer["rx_bytes"] > 0
    kept.works()


def wait_for_state(kept: Kept) -> None:
    assert kept.client.tunnel(kept.path, "WaitForState", "ast", ["up"], 0) == "up"


def end_namespace(kept: Kept) -> None:
    kept.inside.empty()
    kept.client.tunnels()
    wait_for(lambda: kept.client.tunnels() == [], "the tunnel has ended", SOON)
    wait_for(lambda: not is_alive(kept.engine), "its engine too", SOON)


@pytest.mark.parametrize(
    "ask",
    [close, restart, reconfigure, create_beside, get_peers, wait_for_state, end_namespace],
    ids=lambda ask: ask.__name__,
)
def test_the_next_daemon_answers(
    unlimited: UserManager, namespace: MakeNamespace, stage: Stage, ask: Callable[[Kept], None]
) -> None:
    inside = namespace()
    with Client(unlimited.address) as client:
        path = client.create(inside, stage.conf(0), name="kept")
        ping(inside, stage.far.ipv4)
        kept = Kept(client, inside, stage, path, client.get(path, "EnginePID"))
        before = kill(unlimited, client)
        ask(kept)
        assert main_pid(unlimited) != before


# ---------------------------------------------------------------- many calls

SPACES = 50


class Crowd:
    """As many tunnels as namespaces, by as many clients."""

    def __init__(self, manager: UserManager, spaces: list[Namespace], lifetime: str) -> None:
        self.manager = manager
        self.spaces = spaces
        self.lifetime = lifetime
        self.outcomes = Outcomes()
        self.created: set[int] = set()
        self.closed: set[int] = set()
        self._conf = Secrets().conf()

    def create(self, number: int, me: Client) -> None:
        options = {"name": f"n{number}", "lifetime": self.lifetime}
        space = self.spaces[number]
        if self.outcomes.attempt("create", lambda: me.create(space, self._conf, **options)):
            self.created.add(number)

    def close(self, number: int, me: Client) -> None:
        done = lambda: me.close_tunnel(tunnel_path(f"n{number}")) or True  # noqa: E731
        if self.outcomes.attempt("close", done):
            self.closed.add(number)

    def all_do(self, act: Callable[[int, Client], None], done: set[int], client: Client) -> None:
        """At once; and the daemon is killed when some have."""

        def kill_in_the_middle() -> None:
            wait_for(lambda: len(done) >= SPACES // 4, "some are done", 30)
            kill(self.manager, client)

        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        by_clients(
            self.manager.address,
            [lambda me, number=number: act(number, me) for number in range(SPACES)],
        )
        killer.join()

    def complete(self, client: Client) -> set[int]:
        """Those that are there, each of them whole; of the others there is nothing."""
        tunnels = client.tunnels()
        assert {state for _, _, state in tunnels} <= {"up"}
        found = {int(name.removeprefix("n")) for name, _, _ in tunnels}
        due = [{"wg0"} if number in found else set() for number in range(SPACES)]
        # What a killed daemon had in hand the kernel takes away, one at a time (RCU).
        wait_for(lambda: [interfaces(inside.pid) for inside in self.spaces] == due, "whole or gone")
        for _, path, _ in tunnels:
            assert len(client.peers(path)) == 1
        engines = {client.get(path, "EnginePID") for _, path, _ in tunnels}
        assert len(engines) == len(tunnels)
        own = {main_pid(self.manager)}
        wait_for(lambda: len(self.manager.processes(UNIT) - engines - own) <= 5, "no stray engine")
        return found


@pytest.mark.parametrize("lifetime", ["namespace", "persistent"])
def test_a_daemon_that_dies_leaves_no_half_tunnel(
    unlimited: UserManager, namespace: MakeNamespace, lifetime: str
) -> None:
    crowd = Crowd(unlimited, [namespace() for _ in range(SPACES)], lifetime)
    with Client(unlimited.address) as client:
        client.tunnels()
        before = main_pid(unlimited)
        crowd.all_do(crowd.create, crowd.created, client)
        second = wait_successor(unlimited, before)
        there = crowd.complete(client)
        assert crowd.created <= there
        assert crowd.outcomes.of("create") <= {"ok", LOST}, str(crowd.outcomes)
        for number in set(range(SPACES)) - there:
            crowd.create(number, client)
        assert crowd.complete(client) == set(range(SPACES)), str(crowd.outcomes)

        crowd.all_do(crowd.close, crowd.closed, client)
        wait_successor(unlimited, second)
        there = crowd.complete(client)
        assert not there & crowd.closed
        assert crowd.outcomes.of("close") <= {"ok", LOST} | CLOSED, str(crowd.outcomes)
        for number in there:
            crowd.close(number, client)
        assert crowd.complete(client) == set(), str(crowd.outcomes)


# ---------------------------------------------------------------- while the store is being filled


def lease_ends(_: UserManager, lease: int) -> None:
    os.close(lease)


def engines_die(manager: UserManager, lease: int) -> None:
    for pid in engines_of([main_pid(manager)]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.close(lease)


@pytest.mark.parametrize("end", [lease_ends, engines_die], ids=lambda end: end.__name__)
def test_what_is_stored_may_end_at_any_moment(
    unlimited: UserManager, namespace: MakeNamespace, end: Callable[[UserManager, int], None]
) -> None:
    inside, outcomes, conf, journal = namespace(), Outcomes(), Secrets().conf(), Journal()
    with Client(unlimited.address) as client:
        client.tunnels()
        for delay_us in range(0, 40_000, 400):
            theirs, ours = os.pipe()
            ender = threading.Timer(delay_us / 1e6, end, (unlimited, ours))
            ender.start()
            options = {"lifetime": "lease", "lease": ("h", theirs)}
            outcomes.attempt("create", partial(client.create, inside, conf, **options))
            os.close(theirs)
            ender.join()
            wait_for(lambda: client.tunnels() == [], "undone")
            assert interfaces(inside.pid) == set()
    assert "ok" in outcomes.of("create") <= {"ok", "NoSuchTunnel", "EngineFailed"}, str(outcomes)
    assert not [
        line for line in journal.messages(f"--user-unit={UNIT}") if "internal error" in line
    ]
