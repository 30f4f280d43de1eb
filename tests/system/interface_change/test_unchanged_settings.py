"""A change never interrupts settings that stay, nor those that the owner added."""

import itertools
import select
from typing import Any

from support.interface_changes import Make, of, run
from support.interfaces import NAME
from support.namespaces import Namespace


def test_what_stays_is_never_away(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(
        of("10.0.0.1/24", "10.0.0.2/24", "10.5.0.1/16", "fd00::1/64", "fd00::2/64",
           routes="0.0.0.0/0 ::/0 10.9.0.0/16")
    )  # fmt: skip
    monitor = inside.popen("ip", "monitor", "address", "route", stdout=-1)
    assert monitor.stdout is not None
    told = iter(monitor.stdout.readline, "")

    def until(marker: str) -> list[str]:
        return list(itertools.takewhile(lambda line: marker not in line, told))

    # It listens once it tells of something.
    ready = "198.51.100.1"
    while not _readable(monitor.stdout):
        inside.run("ip", "route", "replace", ready, "dev", NAME)
    subject.change(
        of("10.0.0.2/24", "10.5.0.1/16", "10.7.0.1/24", "fd00::2/64", "fd07::1/64",
           routes="0.0.0.0/0 ::/0 10.8.0.0/16", mtu=1300)
    )  # fmt: skip
    inside.check("ip", "route", "add", "198.51.100.2", "dev", NAME)
    deleted = [line for line in until("198.51.100.2") if line.startswith("Deleted")]
    monitor.terminate()
    monitor.wait(10)
    monitor.stdout.close()
    text = "".join(deleted)
    assert "10.0.0.1/24" in text
    assert "10.9.0.0/16" in text
    for stays in ("inet 10.0.0.2", "inet 10.5.0.1", "inet6 fd00::2", "default", "fd00::/64"):
        assert stays not in text


def _readable(stream: Any) -> bool:
    return bool(select.select([stream], [], [], 0.1)[0])


def test_a_stream_over_what_stays_goes_on(tunnel: Make, inside: Namespace) -> None:
    """The kernel answers for both ends; the test is that neither connection breaks."""
    subject = tunnel(of("10.0.0.1/24", "10.0.0.2/24", "fd00::2/64"))
    command = ["python3", "-c", _ECHO]
    stream = inside.popen(*command, stdin=-1, stdout=-1)
    assert stream.stdin is not None
    assert stream.stdout is not None
    assert stream.stdout.readline() == "connected\n"
    subject.change(of("10.0.0.2/24", "fd00::2/64", "10.3.0.1/24", routes="0.0.0.0/0"))
    stream.stdin.close()
    assert stream.stdout.readline() == "alive\n"
    stream.stdout.close()
    assert stream.wait(10) == 0


_ECHO = """
import socket, sys
def pair(address):
    server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else 2)
    client = socket.create_connection(server.getsockname()[:2], source_address=(address, 0))
    return client, server.accept()[0]
pairs = [pair("10.0.0.2"), pair("fd00::2")]
print("connected", flush=True)
sys.stdin.read()
for client, server in pairs:
    client.sendall(b"x")
    assert server.recv(1) == b"x"
print("alive", flush=True)
"""


def test_what_the_owner_added_stays(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/24", "fd00::1/64", routes="10.9.0.0/16"))
    run(
        inside,
        "ip address add 10.44.0.1/24 dev wg0",
        "ip address add fd44::1/64 dev wg0",
        "ip address add 10.0.0.7/24 dev wg0",
        "ip route add 10.55.0.0/16 dev wg0",
        "ip route add 10.56.0.0/16 dev wg0 src 10.44.0.1 metric 5",
        "ip route add fd55::/64 dev wg0 metric 9",
        "ip route add 10.9.0.0/16 dev wg0 metric 100 proto static",
    )
    subject.change(of("10.2.0.1/24"))
    assert set(subject.addresses()) == {
        "10.2.0.1/24", "10.44.0.1/24", "10.0.0.7/24", "fd44::1/64",
    }  # fmt: skip
    assert subject.routes() >= {
        ("10.55.0.0/16", "boot"), ("10.56.0.0/16", "boot"), ("fd55::/64", "boot"),
        ("10.9.0.0/16", "static"),
    }  # fmt: skip


def test_what_the_owner_has_taken_away_needs_no_removal(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/24", "10.1.0.1/24", "fd00::1/64", routes="10.9.0.0/16 fd09::/64"))
    run(
        inside,
        "ip address del 10.0.0.1/24 dev wg0",
        "ip address del fd00::1/64 dev wg0",
        "ip route del 10.9.0.0/16",
        "ip route del fd09::/64",
    )
    subject.change(of("10.1.0.1/24"))
    assert subject.addresses() == ["10.1.0.1/24"]
    assert subject.routes() == {("10.1.0.0/24", "kernel")}


def test_what_the_owner_has_added_before_counts(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(of("10.0.0.1/24"))
    run(
        inside,
        "ip address add 10.1.0.1/24 dev wg0",
        "ip address add fd00::1/64 dev wg0",
        "ip route add 10.9.0.0/16 dev wg0",
        "ip route add fd09::/64 dev wg0",
    )
    subject.change(of("10.0.0.1/24", "10.1.0.1/24", "fd00::1/64", routes="10.9.0.0/16 fd09::/64"))
    assert set(subject.addresses()) == {"10.0.0.1/24", "10.1.0.1/24", "fd00::1/64"}
