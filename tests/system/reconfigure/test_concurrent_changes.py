"""Several changes at once, and a tunnel that is closed meanwhile."""

import itertools
import os
import threading
from dataclasses import replace

import pytest
from jeepney import HeaderFields, MessageType

from support.bus import TUNNEL, Bus, Client, DBusError
from support.daemon import Daemon
from support.fds import memfd, pipe
from support.namespaces import MakeNamespace, Namespace
from support.reconfiguration import ONE, P2, Conf, peer, variations
from support.witnesses import Make, Tunnel, expected


def send(client: Client, subject: Tunnel, conf: Conf) -> int:
    """Call without waiting for the reply, which has this serial."""
    with memfd(str(conf)) as fd:
        message = client.message(subject.path, TUNNEL, "Reconfigure", "ha{sv}", (fd, {}))
        serial = next(client.connection.outgoing_serial)
        client.connection.send(message, serial=serial)
    return serial


def test_many_at_once(tunnel: Make, client: Client) -> None:
    """One after another; the last one wins."""
    base = Conf(peers=(peer(4, "198.51.100.0/24", endpoint="127.0.0.1:9"),))
    subject = tunnel(base)
    port = subject.get("ListenPort")
    confs = [*variations(base)] * 3
    serials = {send(client, subject, conf) for conf in confs}
    while serials:
        reply = client.connection.receive(timeout=30)
        assert reply.header.message_type is not MessageType.error, reply.body
        serials.discard(reply.header.fields.get(HeaderFields.reply_serial))
    assert subject.seen() == expected(confs[-1], port)
    assert subject.restarts() == 0


def test_close_meanwhile(
    daemon: Daemon, client: Client, namespace: MakeNamespace, bus: Bus
) -> None:
    inside = namespace()
    for number in range(20):
        subject = Tunnel(daemon, client, inside, ONE)
        with Client(bus.address) as other:
            closing = threading.Timer(number / 2000, other.close_tunnel, [subject.path])
            closing.start()
            other_conf = replace(ONE, addresses=("10.7.0.1/24",), peers=(P2,))
            for conf in itertools.cycle((other_conf, ONE)):
                if error := subject.error_of(conf):
                    break
            closing.join()
        assert error in ("NoSuchTunnel", "UnknownObject")
        assert set(inside.links()) == {"lo"}
        assert inside.processes() == {inside.pid}


def test_closed_while_it_reads(tunnel: Make, client: Client, inside: Namespace) -> None:
    subject = tunnel(ONE)
    with pipe() as (read_end, write_end):
        message = client.message(subject.path, TUNNEL, "Reconfigure", "ha{sv}", (read_end, {}))
        serial = next(client.connection.outgoing_serial)
        client.connection.send(message, serial=serial)
        client.close_tunnel(subject.path)
        os.write(write_end, str(ONE).encode())
    while (reply := client.connection.receive(timeout=10)).header.fields.get(
        HeaderFields.reply_serial
    ) != serial:
        pass
    assert reply.header.fields[HeaderFields.error_name].endswith(".NoSuchTunnel")
    with pytest.raises(DBusError, match="UnknownObject"):
        subject.reconfigure(ONE)
