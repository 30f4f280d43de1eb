"""An engine's UDP sockets, on this machine's own network."""

import os
import socket

import pytest

from wg4netnsd.engine.udp import PortInUse, UdpSockets
from wg4netnsd.kernel import udp


def bound(family: int, port: int = 0, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    other = socket.socket(family, kind)
    if family == socket.AF_INET6:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    other.bind(("", port))
    return other


def test_both_families_have_one_port() -> None:
    sockets = UdpSockets.open(0)
    assert sockets.port
    assert set(sockets.by_family) == {socket.AF_INET, socket.AF_INET6}
    sockets.close()
    again = UdpSockets.open(sockets.port)
    assert again.port == sockets.port
    again.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_one_family_lacks(family: int) -> None:
    before = os.listdir("/proc/self/fd")
    with bound(family) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUse, match="ListenPort: the port is in use on the host"):
            UdpSockets.open(port)
    assert os.listdir("/proc/self/fd") == before


def test_sockets_of_an_earlier_daemon() -> None:
    first = udp.open_sockets(0)
    port = first[0].getsockname()[1]
    adopted = UdpSockets.adopt([each.detach() for each in first], least=2)
    assert adopted
    assert adopted.port == port
    adopted.close()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda: [], id="none"),
        pytest.param(lambda: [bound(socket.AF_INET)], id="one"),
        pytest.param(lambda: [bound(socket.AF_INET), bound(socket.AF_INET6)], id="two-ports"),
        pytest.param(
            lambda: [bound(socket.AF_INET, kind=socket.SOCK_STREAM), *udp.open_sockets(0)], id="tcp"
        ),
    ],
)
def test_what_is_not_adopted_is_closed(wrong: object) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert callable(wrong)
    assert UdpSockets.adopt([each.detach() for each in wrong()], least=2) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_namespace_has_one_cookie() -> None:
    with bound(socket.AF_INET) as one, bound(socket.AF_INET6) as other:
        assert udp.netns_cookie(one) == udp.netns_cookie(other)
