"""Tunnels through namespaces, passed sockets and other tunnels, when daemon or engines end."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.bus import Client
from support.daemon import SOON
from support.installed import crash
from support.journal import Journal
from support.manager import UserManager
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import wait_for
from support.stage import Stage
from support.tamper import Shelf, Store, tampering
from support.transits import conf_through, sockets_of
from support.tunnels import reconfigure

OUTER = "z-outer"  # the next daemon has to adopt it first, whatever order systemd passes them in


@dataclass
class Up:
    client: Client
    outer: Namespace
    inside: Namespace
    path: str


@contextlib.contextmanager
def through(kind: str, outer: Namespace) -> Iterator[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        match kind:
            case "tunnel":
                yield {"transit_tunnel": ("s", OUTER)}
            case "namespace":
                netns = outer.open()
                stack.callback(os.close, netns)
                yield {"transit": ("h", netns)}
            case "sockets":
                yield {"transit_sockets": ("ah", stack.enter_context(sockets_of(outer)))}


@pytest.fixture(params=["tunnel", "namespace", "sockets"])
def up(
    installed: UserManager,
    namespace: MakeNamespace,
    stage: Stage,
    request: pytest.FixtureRequest,
) -> Iterator[Up]:
    outer, inside = namespace(), namespace()
    with Client(installed.address) as client:
        client.create(outer, stage.conf(0), name=OUTER)
        with through(request.param, outer) as options:
            path = client.create(inside, conf_through(stage, 1), name="a-inner", **options)
        ping(inside, stage.far.ipv4)
        yield Up(client, outer, inside, path)


def test_the_next_daemon_goes_on_with_it(installed: UserManager, up: Up, stage: Stage) -> None:
    before = up.client.get_all(up.path)
    for _ in range(3):
        crash(installed)
        after = up.client.get_all(up.path)
        assert {**after, "Peers": 0} == {**before, "Peers": 0}
        ping(up.inside, stage.far.ipv4)
    # And opens sockets for another engine, or another port, where they belong.
    os.kill(before["EnginePID"], signal.SIGKILL)
    wait_for(lambda: up.client.get(up.path, "EnginePID") not in (0, before["EnginePID"]), "another")
    ping(up.inside, stage.far.ipv4)
    assert up.client.get(up.path, "ListenPort") == before["ListenPort"]
    if before["Transit"][0] != "sockets":
        conf = conf_through(stage, 1).replace("[Interface]\n", "[Interface]\nListenPort = 40444\n")
        reconfigure(up.client, up.path, conf)
        assert up.outer.check("ss", "-Hlun", "sport = :40444")
        ping(up.inside, stage.far.ipv4)


def test_the_next_daemon_knows_another_transit(
    installed: UserManager, namespace: MakeNamespace, stage: Stage
) -> None:
    outer, inside = namespace(), namespace()
    with Client(installed.address) as client:
        client.create(outer, stage.conf(0), name=OUTER)
        path = client.create(inside, stage.conf(1), name="a-inner")
        for kind in ("namespace", "tunnel", "sockets"):
            with through(kind, outer) as options:
                reconfigure(client, path, conf_through(stage, 1), **options)
            known = {name: client.get(path, name) for name in ("Transit", "ListenPort")}
            crash(installed)
            assert {name: client.get(path, name) for name in known} == known
            pid = client.get(path, "EnginePID")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: client.get(path, "EnginePID") not in (0, pid), "another")
            ping(inside, stage.far.ipv4)
            assert {name: client.get(path, name) for name in known} == known
        reconfigure(client, path, stage.conf(1), transit_tunnel=("s", ""))
        crash(installed)
        assert client.get(path, "Transit") == ("host", "")
        ping(inside, stage.far.ipv4)


def lose_outer(store: Store) -> None:
    Shelf(store, OUTER).remove("record")


def test_the_outer_tunnel_ended_while_there_was_no_daemon(
    installed: UserManager, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    with tampering(installed, tmp_path) as unit, Client(installed.address) as client:
        client.create(namespace(), stage.conf(0), name=OUTER)
        client.create(namespace(), conf_through(stage, 1), name="a-inner", transit_tunnel=OUTER)
        journal = Journal()
        unit.crash(lose_outer)
        wait_for(lambda: client.tunnels() == [], "both have ended", SOON)
        told = "its outer tunnel 'z-outer' ended"
        wait_for(
            lambda: any(told in each for each in journal.messages("TUNNEL=a-inner")), "it is told"
        )
