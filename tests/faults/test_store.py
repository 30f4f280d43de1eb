"""What systemd holds is not what the last daemon left there: parts are missing, damaged, of another
version, or of no use at all.

One daemon leaves all these tunnels behind, each with a fault of its own, and the next one goes on
with what it finds. It starts in any case, and a fault of one tunnel is none of the others'.
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.aftermath import Seen, Then, Tunnel, assert_no_strays
from support.bus import Client
from support.configs import Secrets
from support.installed import assert_nothing_left, state
from support.journal import Journal
from support.manager import UNIT, UserManager, ctl
from support.namespaces import Namespace, ping
from support.stage import Stage
from support.tamper import Shelf, Store, memory, tampering
from wg4netnsd.kernel import udp

# ---------------------------------------------------------------- the faults


def nothing(shelf: Shelf) -> None:
    """All is as the daemon left it."""


def tun_missing(shelf: Shelf) -> None:
    """As if systemd had had no room for it."""
    shelf.remove("tun")


def tun_is_a_file(shelf: Shelf) -> None:
    shelf.replace("tun", os.open("/dev/null", os.O_RDWR))


def tun_without_an_interface(shelf: Shelf) -> None:
    """/dev/net/tun, opened and no more: it polls EPOLLERR, at which systemd lets go of it."""
    shelf.replace("tun", os.open("/dev/net/tun", os.O_RDWR))


def record_missing(shelf: Shelf) -> None:
    shelf.remove("record")


def record_is_rubbish(shelf: Shelf) -> None:
    shelf.replace("record", memory(os.urandom(1000)))


def record_is_empty(shelf: Shelf) -> None:
    shelf.replace("record", memory(b""))


def record_is_cut_off(shelf: Shelf) -> None:
    shelf.replace("record", memory(shelf.record()[:-10]))


def record_is_a_pipe(shelf: Shelf) -> None:
    """One that nobody writes to, and that does not end: to read it would take for ever."""
    reader, writer = os.pipe()
    shelf.replace("record", reader)
    shelf.add("a-writer", writer)


def record_is_a_directory(shelf: Shelf) -> None:
    shelf.replace("record", os.open("/", os.O_RDONLY))


def record_is_endless(shelf: Shelf) -> None:
    shelf.replace("record", os.open("/dev/zero", os.O_RDONLY))


def record_is_written_to(shelf: Shelf) -> None:
    """Which its seals refuse, whoever holds it."""
    with contextlib.suppress(PermissionError):
        os.pwrite(shelf.fd("record"), b"rubbish", 0)
    with contextlib.suppress(PermissionError):
        os.ftruncate(shelf.fd("record"), 10)


def record_of_format_0(shelf: Shelf) -> None:
    shelf.rewrite(format=0)


def record_of_format_99(shelf: Shelf) -> None:
    """A newer daemon was here, and the older one came back."""
    shelf.rewrite(format=99)


def record_knows_more(shelf: Shelf) -> None:
    shelf.rewrite(colour="red")


def record_of_another_tunnel(shelf: Shelf) -> None:
    shelf.rewrite(name="another")


def record_with_an_invalid_configuration(shelf: Shelf) -> None:
    shelf.rewrite(config="[Interface]\nPrivateKey = none\n")


def record_with_an_unknown_error(shelf: Shelf) -> None:
    """A newer daemon's LastError."""
    shelf.rewrite(error=["Overcast", "too many clouds"])


def two_records(shelf: Shelf) -> None:
    """The daemon was killed while it replaced one by the other."""
    shelf.add("next-record", memory(shelf.record()))
    shelf.rewrite(serial=0, restart_count=7)


def newer_record_is_damaged(shelf: Shelf) -> None:
    shelf.add("next-record", memory(b"{"))


def older_record_is_damaged(shelf: Shelf) -> None:
    shelf.add("next-record", memory(shelf.record()))
    shelf.replace("record", memory(b"{"))


def netns_missing(shelf: Shelf) -> None:
    shelf.remove("netns")


def netns_is_a_file(shelf: Shelf) -> None:
    shelf.replace("netns", os.open("/dev/null", os.O_RDONLY))


def lease_missing(shelf: Shelf) -> None:
    """systemd lets go of a pipe whose other end is closed."""
    shelf.remove("lease")


def lease_is_a_file(shelf: Shelf) -> None:
    shelf.replace("lease", os.open("/dev/null", os.O_RDONLY))


def pidfd_missing(shelf: Shelf) -> None:
    shelf.remove("pidfd")


def handover_missing(shelf: Shelf) -> None:
    shelf.remove("handover")


def events_missing(shelf: Shelf) -> None:
    shelf.remove("events")


def log_missing(shelf: Shelf) -> None:
    shelf.remove("log")


def pidfd_is_a_file(shelf: Shelf) -> None:
    shelf.replace("pidfd", os.open("/dev/null", os.O_RDONLY))


def handover_is_a_file(shelf: Shelf) -> None:
    shelf.replace("handover", os.open("/dev/null", os.O_RDONLY))


def events_are_a_file(shelf: Shelf) -> None:
    shelf.replace("events", os.open("/dev/null", os.O_RDONLY))


def log_is_a_file(shelf: Shelf) -> None:
    shelf.replace("log", os.open("/dev/null", os.O_RDONLY))


def a_udp_socket_missing(shelf: Shelf) -> None:
    shelf.remove("udp6")


def udp_is_a_file(shelf: Shelf) -> None:
    shelf.replace("udp4", os.open("/dev/null", os.O_RDONLY))


def udp_is_tcp(shelf: Shelf) -> None:
    shelf.replace("udp4", socket.socket().detach())


def udp_has_another_port(shelf: Shelf) -> None:
    other, _ = udp.open_sockets(0)
    shelf.replace("udp4", other.detach())


def of_another_protocol(shelf: Shelf) -> None:
    """The engine was built before what it and the daemon say to each other was changed."""
    shelf.rewrite(protocol=99)


def of_a_daemon_without_udp_sockets(shelf: Shelf) -> None:
    """An earlier one, whose engines opened their own."""
    shelf.rewrite(protocol=1)
    shelf.remove("udp4")
    shelf.remove("udp6")


def engine_twice(shelf: Shelf) -> None:
    """Its pidfd, that is; the other one is of a process which has nothing to do with all this."""
    shelf.add("pidfd", os.pidfd_open(1))


def unknown_kinds(shelf: Shelf) -> None:
    """A newer daemon stored them; one has the name that systemd gives to what has none."""
    shelf.add("mirror", os.open("/dev/null", os.O_RDONLY))
    shelf.store.add("stored", os.open("/dev/zero", os.O_RDONLY))
    shelf.store.add("tun@", os.open("/dev/full", os.O_RDONLY))


# ---------------------------------------------------------------- what becomes of the tunnel


@dataclass(frozen=True)
class Row:
    fault: Callable[[Shelf], None]
    then: Then
    lifetime: str = "namespace"
    logged: str = ""  # about it, where something is
    holds_udp: bool = True  # afterwards, unless there is a new engine

    @property
    def name(self) -> str:
        return self.fault.__name__.replace("_", "-")


ROWS = [
    Row(nothing, Then.AS_IT_WAS),
    Row(tun_missing, Then.ENDED, logged="its TUN is missing"),
    Row(tun_is_a_file, Then.ENDED),
    Row(tun_without_an_interface, Then.ENDED),
    Row(record_missing, Then.ENDED, logged="no record"),
    Row(record_is_rubbish, Then.ENDED, logged="record: "),
    Row(record_is_empty, Then.ENDED, logged="record: "),
    Row(record_is_cut_off, Then.ENDED, logged="record: "),
    Row(record_is_a_pipe, Then.ENDED, logged="no record"),
    Row(record_is_a_directory, Then.ENDED, logged="no record"),
    Row(record_is_endless, Then.ENDED, logged="no record"),
    Row(record_is_written_to, Then.AS_IT_WAS),
    Row(record_of_format_0, Then.ENDED, logged="format: "),
    Row(record_of_format_99, Then.ENDED, logged="format: "),
    Row(record_knows_more, Then.ENDED, logged="colour: "),
    Row(record_of_another_tunnel, Then.ENDED, logged="of another tunnel"),
    Row(record_with_an_invalid_configuration, Then.ENDED, logged="PrivateKey"),
    Row(record_with_an_unknown_error, Then.AS_IT_WAS),
    Row(two_records, Then.AS_IT_WAS),
    Row(newer_record_is_damaged, Then.AS_IT_WAS),
    Row(older_record_is_damaged, Then.AS_IT_WAS),
    Row(netns_missing, Then.AS_IT_WAS, lifetime="persistent"),
    Row(netns_is_a_file, Then.AS_IT_WAS, lifetime="persistent"),
    Row(lease_missing, Then.ENDED, lifetime="lease", logged="its lease ended"),
    Row(lease_is_a_file, Then.ENDED, lifetime="lease", logged="lease: "),
    Row(pidfd_missing, Then.NEW_ENGINE),
    Row(handover_missing, Then.NEW_ENGINE),
    Row(events_missing, Then.NEW_ENGINE),
    Row(log_missing, Then.NEW_ENGINE),
    Row(pidfd_is_a_file, Then.NEW_ENGINE),
    Row(handover_is_a_file, Then.NEW_ENGINE),
    Row(events_are_a_file, Then.NEW_ENGINE),
    Row(log_is_a_file, Then.NEW_ENGINE),
    Row(a_udp_socket_missing, Then.AS_IT_WAS, holds_udp=False),
    Row(udp_is_a_file, Then.AS_IT_WAS, holds_udp=False),
    Row(udp_is_tcp, Then.AS_IT_WAS, holds_udp=False),
    Row(udp_has_another_port, Then.AS_IT_WAS, holds_udp=False),
    Row(engine_twice, Then.NEW_ENGINE),
    Row(of_another_protocol, Then.NEW_ENGINE),
    Row(of_a_daemon_without_udp_sockets, Then.NEW_ENGINE),
    Row(unknown_kinds, Then.AS_IT_WAS),
]


def tamper_with_each(store: Store, rows: list[str]) -> None:
    for row in ROWS:
        if row.name in rows:
            row.fault(Shelf(store, row.name))


@dataclass
class After:
    """The daemon that has found them so."""

    manager: UserManager
    client: Client
    tunnels: dict[str, Tunnel]
    journal: Journal
    stored: set[str]  # what systemd holds by now


def make(client: Client, conf: str, row: Row, made: ExitStack) -> Tunnel:
    inside = made.enter_context(Namespace())
    options: dict[str, Any] = {"lifetime": row.lifetime}
    if row.lifetime == "lease":
        reader, writer = os.pipe()
        made.callback(os.close, writer)
        made.callback(os.close, reader)
        options["lease"] = ("h", reader)
    path = client.create(inside, conf, name=row.name, **options)
    return Tunnel(inside, path, Seen.of(client, path))


@pytest.fixture(scope="module")
def after(
    user_manager: UserManager, stage: Stage, request: pytest.FixtureRequest
) -> Iterator[After]:
    """All that has to be done but once, with the rows that are to be run."""
    specs = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    wanted = {spec.params["row"] for spec in specs if "row" in spec.params}
    lasting = [row for row in ROWS if row.then is not Then.ENDED]
    ctl("setup")
    with ExitStack() as made, tempfile.TemporaryDirectory() as directory:
        made.callback(ctl, "setup", "--remove")
        unit = made.enter_context(tampering(user_manager, Path(directory)))
        client = made.enter_context(Client(user_manager.address))
        tunnels = {}
        for row in (row for row in ROWS if row in wanted):
            conf = stage.conf(lasting.index(row)) if row in lasting else Secrets().conf()
            tunnels[row.name] = make(client, conf, row, made)
            if row in lasting:
                ping(tunnels[row.name].inside, stage.far.ipv4)
        journal = Journal()
        unit.crash(tamper_with_each, list(tunnels))
        for tunnel in tunnels.values():
            if state(client, tunnel.path):
                Seen.of(client, tunnel.path)
        yield After(user_manager, client, tunnels, journal, unit.names())
        for name, path, _ in client.tunnels():
            client.close_tunnel(path)
            assert set(tunnels[name].inside.links()) == {"lo"}
        user_manager.systemctl("stop", UNIT)
        assert_nothing_left(user_manager)


ALL = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])


@ALL
def test_what_becomes_of_the_tunnel(after: After, stage: Stage, row: Row) -> None:
    messages = after.journal.messages(f"--user-unit={UNIT}")
    assert any(row.logged in message for message in messages if row.name in message)
    tunnel = after.tunnels[row.name]
    tunnel.assert_then(row.then, after.client)
    if row.then is Then.ENDED:
        assert set(tunnel.inside.links()) == {"lo"}
    else:
        ping(tunnel.inside, stage.far.ipv4)


@ALL
def test_what_systemd_holds_of_it(after: After, row: Row) -> None:
    """All of a tunnel, and nothing of one that has ended."""
    kinds = {name.split("@")[0] for name in after.stored if name.endswith(f"@{row.name}")}
    if row.then is Then.ENDED:
        assert kinds == set()
        return
    records = {"record", "next-record"}  # where there are two, one goes with the next change
    assert kinds & records
    udp_kinds = {"udp4", "udp6"} if row.holds_udp else set()
    engines = {"pidfd", "handover", "events", "log"}
    assert kinds - records - {"netns"} == {"tun"} | engines | udp_kinds


def test_systemd_holds_nothing_else(after: After) -> None:
    assert {name.partition("@")[2] for name in after.stored} <= set(after.tunnels)
    assert not after.stored & {"stored", "tun@"}


def test_every_engine_belongs_to_a_tunnel(after: After) -> None:
    assert_no_strays(after.manager, after.client)
