"""Messages that are no proper calls."""

from typing import Any

import pytest

from support.bus import (
    CREATE,
    MANAGER,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    TUNNEL,
    Bus,
    Client,
    CommandFailed,
    busctl,
)
from support.buses import BROKER, ON_BOTH
from support.daemon import Daemon
from support.fds import opened, without_fds
from support.namespaces import Namespace
from support.refusals import CREATE_FROM_PATHS, Refuses


def test_descriptors_that_did_not_come(refuses: Refuses, client: Client, inside: Namespace) -> None:
    missing = without_fds(client, ROOT, MANAGER, "CreateTunnel", CREATE, (0, 1, {}))
    refuses.judge(missing, "InvalidArgs", "file descriptor 0 did not come")
    missing = without_fds(client, ROOT, MANAGER, "GetTunnelByNetns", "h", (2**32 - 1,))
    refuses.judge(missing, "InvalidArgs", "did not come with the message")


@ON_BOTH
@pytest.mark.parametrize("number", [7, 16])
def test_too_many_descriptors(refuses: Refuses, number: int) -> None:
    with opened("/dev/null") as fd:
        refuses(
            "InvalidArgs",
            "more than 6 file descriptors",
            *(ROOT, MANAGER, "ListTunnels", "ah", ([fd] * number,)),
        )


@pytest.mark.parametrize("bus_program", [BROKER], indirect=True)
def test_as_many_descriptors_as_the_kernel_allows(refuses: Refuses) -> None:
    """SCM_MAX_FD; dbus-daemon allows 16."""
    with opened("/dev/null") as fd:
        refuses(
            "InvalidArgs",
            "more than 6 file descriptors",
            *(ROOT, MANAGER, "ListTunnels", "ah", ([fd] * 253,)),
        )


def test_more_descriptors_than_the_bus_allows(daemon: Daemon, client: Client, bus: Bus) -> None:
    with opened("/dev/null") as fd, Client(bus.address) as sender:
        call = sender.message(ROOT, MANAGER, "ListTunnels", "ah", ([fd] * 17,))
        with pytest.raises(ConnectionError):  # from dbus-daemon, which hangs up
            sender.exchange(call)
    assert client.tunnels() == []


@pytest.mark.parametrize(
    ("member", "signature", "body"),
    [
        ("CreateTunnel", "", ()),
        ("CreateTunnel", "hh", "netns"),
        ("CreateTunnel", "hha{ss}", "netns"),
        ("CreateTunnel", "hha{sv}s", "netns"),
        ("CreateTunnelFromPaths", "sss", ("/a", "/b", "/c")),
        ("GetTunnel", "u", (1,)),
        ("GetTunnel", "ss", ("a", "b")),
        ("GetTunnelByNetns", "s", ("/proc/1/ns/net",)),
        ("ListTunnels", "s", ("",)),
        ("Describe", "h", "netns"),
    ],
)
def test_a_wrong_signature(refuses: Refuses, member: str, signature: str, body: Any) -> None:
    with opened("/proc/self/ns/net") as fd:
        if body == "netns":
            body = {"hh": (fd, fd), "h": (fd,), "hha{ss}": (fd, fd, {"a": "b"})}.get(
                signature, (fd, fd, {}, "")
            )
        refuses("InvalidArgs", f"not ({signature})", ROOT, MANAGER, member, signature, body)


GET, SET = ("ss", (MANAGER, "Version")), ("ssv", (MANAGER, "Version", ("s", "2")))


@pytest.mark.parametrize(
    ("error", "fragment", "call"),
    [
        ("UnknownObject", "no object /org/wg4netns2", ("/org/wg4netns2", MANAGER, "ListTunnels")),
        ("UnknownObject", "no object", (f"{ROOT}/tunnel/none", TUNNEL, "Close")),
        ("UnknownObject", "no object", (f"{ROOT}/tunnel/none", PROPERTIES, "GetAll", "s", ("",))),
        ("UnknownInterface", "no interface", (ROOT, "org.wg4netns2.Manager", "ListTunnels")),
        ("UnknownInterface", "no interface", (ROOT, TUNNEL, "Close")),
        ("UnknownMethod", "no method", (ROOT, MANAGER, "DestroyTunnel")),
        ("UnknownMethod", "no method", (ROOT, MANAGER, "listTunnels")),
        ("UnknownMethod", "no method", (ROOT, MANAGER, "call")),
        ("UnknownMethod", "no method", (ROOT, OBJECT_MANAGER, "ListTunnels")),
        ("UnknownMethod", "no method DestroyTunnel", (ROOT, None, "DestroyTunnel")),
        ("UnknownProperty", "'version'", (ROOT, PROPERTIES, "Get", "ss", (MANAGER, "version"))),
        ("UnknownInterface", "", (ROOT, PROPERTIES, "Get", "ss", (TUNNEL, "Name"))),
        ("UnknownInterface", "", (ROOT, PROPERTIES, "GetAll", "s", (TUNNEL,))),
        ("PropertyReadOnly", "Version is read-only", (ROOT, PROPERTIES, "Set", *SET)),
        ("InvalidArgs", "takes (ssv)", (ROOT, PROPERTIES, "Set", *GET)),
        ("InvalidArgs", "takes (ss)", (ROOT, PROPERTIES, "Get", *SET)),
        ("NoSuchTunnel", "no tunnel named 'none'", (ROOT, MANAGER, "GetTunnel", "s", ("none",))),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[1]}.{value[2]}",
)
def test_what_is_not_there(refuses: Refuses, error: str, fragment: str, call: Any) -> None:
    refuses(error, fragment, *call)


def test_busctl_shows_the_errors_short_name(daemon: Daemon, inside: Namespace) -> None:
    """It prints nothing but the message."""
    create = ["call", "org.wg4netns1", ROOT, MANAGER, "CreateTunnelFromPaths", CREATE_FROM_PATHS]
    with pytest.raises(CommandFailed, match=r": Call failed: InvalidConfig: /nowhere: No such"):
        busctl(daemon.address, *create, inside.path, "/nowhere", "0")


def test_a_signal_with_descriptors_is_no_leak(daemon: Daemon, client: Client) -> None:
    """`daemon` counts them."""
    with opened("/dev/null") as fd:
        message = client.message(ROOT, MANAGER, "Hello", "hh", (fd, fd))
        message.header.message_type = type(message.header.message_type).signal
        client.connection.send(message)
    client.tunnels()
