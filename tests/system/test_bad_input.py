"""Whatever a caller gets wrong has an error of its own, and leaves nothing behind."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Opens
from pathlib import Path
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
    DBusError,
    busctl,
)
from support.configs import Secrets
from support.daemon import Daemon
from support.fds import copied_package, memfd, opened, pipe, udp_port_in_use, without_fds
from support.namespaces import MakeNamespace, Namespace
from support.processes import wait_for
from support.stage import Stage

CREATE_FROM_PATHS = "ssa{sv}"
NOTHING = ("as", [])


@pytest.fixture(scope="module")
def module_secrets(running_daemon: Daemon) -> Iterator[Secrets]:
    """All keys of this module's configurations: the daemon's log has none of them."""
    secrets = Secrets()
    yield secrets
    assert running_daemon.log
    secrets.assert_hidden_in(running_daemon.log)


@pytest.fixture
def secrets(module_secrets: Secrets) -> Secrets:
    return module_secrets


@pytest.fixture
def inside(namespace: MakeNamespace) -> Iterator[Namespace]:
    """A namespace that has nothing but lo, and nothing more after a refusal."""
    made = namespace()
    yield made
    assert "wg0" not in made.links()


class Refuses:
    """A call that has to fail: with this error, and a message that holds this."""

    def __init__(self, client: Client, secrets: Secrets) -> None:
        self._client = client
        self._secrets = secrets

    def __call__(
        self, error: str, fragment: str, path: str, interface: str, member: str, *call: Any
    ) -> None:
        with pytest.raises(DBusError) as refused:
            self._client.call(path, interface, member, *call)
        self.judge(refused.value, error, fragment)

    def judge(self, refused: DBusError, error: str, fragment: str) -> None:
        assert refused.short_name == error, refused
        assert refused.message.startswith(f"{error}: "), refused
        assert fragment in refused.message
        self._secrets.assert_hidden_in(refused.message)

    def create(self, error: str, fragment: str, *body: Any) -> None:
        self(error, fragment, ROOT, MANAGER, "CreateTunnel", CREATE, body)

    def create_from_paths(self, error: str, fragment: str, *body: Any) -> None:
        self(error, fragment, ROOT, MANAGER, "CreateTunnelFromPaths", CREATE_FROM_PATHS, body)


@pytest.fixture
def refuses(daemon: Daemon, client: Client, secrets: Secrets) -> Iterator[Refuses]:
    yield Refuses(client, secrets)
    assert client.tunnels() == []


# ---------------------------------------------------------------- the namespace


@contextlib.contextmanager
def read_end(_: Namespace) -> Iterator[int]:
    with pipe() as (end, _):
        yield end


@pytest.mark.parametrize(
    ("netns", "fragment"),
    [
        pytest.param(read_end, "not a namespace: expected a network namespace", id="pipe"),
        pytest.param(lambda _: opened("/dev/null"), "not a namespace", id="dev-null"),
        pytest.param(lambda _: opened("/"), "not a namespace", id="directory"),
        pytest.param(lambda _: memfd(b""), "not a namespace", id="memfd"),
        pytest.param(
            lambda n: opened(n.path, os.O_PATH), "O_PATH: expected a network namespace", id="O_PATH"
        ),
        *(
            pytest.param(
                lambda n, kind=kind: opened(f"/proc/{n.pid}/ns/{kind}"), "another type", id=kind
            )
            for kind in ("mnt", "user", "pid", "uts")
        ),
        pytest.param(lambda _: opened("/proc/self/ns/net"), "the daemon's own", id="the-hosts"),
    ],
)
def test_no_network_namespace(
    refuses: Refuses, inside: Namespace, netns: Callable[[Namespace], Opens[int]], fragment: str
) -> None:
    with netns(inside) as fd, memfd("") as config:
        refuses.create("InvalidNetns", fragment, fd, config, {})
        refuses("InvalidNetns", fragment, ROOT, MANAGER, "GetTunnelByNetns", "h", (fd,))


def test_a_namespace_of_somebody_else(refuses: Refuses, secrets: Secrets, stage: Stage) -> None:
    not_yours = "not a user namespace of yours"
    with opened(stage.roots_netns) as netns, memfd(secrets.conf()) as config:
        refuses.create("InvalidNetns", not_yours, netns, config, {})


@pytest.mark.parametrize(
    ("path", "error", "fragment"),
    [
        ("", "InvalidArgs", "netns_path: '': expected an absolute path"),
        ("run/netns/a", "InvalidArgs", "netns_path: 'run/netns/a': expected an absolute path"),
        ("/proc/self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("//proc/self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("/proc/./x/../self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("/proc/thread-self/ns/net", "InvalidArgs", "the daemon's own file"),
        ("/dev/fd/3", "InvalidArgs", "the daemon's own file"),
        ("/dev/stdin", "InvalidArgs", "the daemon's own file"),
        ("/nowhere", "InvalidNetns", "/nowhere: No such file or directory"),
        ("/proc/1/ns/net", "InvalidNetns", "/proc/1/ns/net: Permission denied"),
        ("/" + "a" * 5000, "InvalidNetns", "File name too long"),
        ("/", "InvalidNetns", "not a namespace"),
        ("/dev/null", "InvalidNetns", "not a namespace"),
    ],
)
def test_no_path_of_a_namespace(
    refuses: Refuses, path: str, error: str, fragment: str, tmp_path: Path
) -> None:
    refuses.create_from_paths(error, fragment, path, str(tmp_path), {})


def test_a_path_that_is_a_fifo_does_not_hang(refuses: Refuses, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = str(tmp_path / "fifo")
    refuses.create_from_paths("InvalidNetns", "not a namespace", fifo, fifo, {})


def test_a_namespace_that_has_a_tunnel(
    refuses: Refuses, client: Client, inside: Namespace, secrets: Secrets
) -> None:
    """By whatever name."""
    path = client.create(inside, secrets.conf(), name="first")
    taken = "the namespace already has the tunnel 'first'"
    for other in (inside.path, f"/proc/{inside.pid}/task/{inside.pid}/ns/net"):
        with opened(other) as netns, memfd(secrets.conf()) as config:
            refuses.create("AlreadyExists", taken, netns, config, {"interface": ("s", "wg1")})
    assert set(inside.links()) == {"lo", "wg0"}
    client.close_tunnel(path)


def test_one_of_two_who_come_at_once_is_refused(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, secrets: Secrets
) -> None:
    with inside_and_config(inside, secrets) as fds, Client(bus.address) as asks:
        message = client.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {}))
        asks.send(message)
        other = client.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {}))
        reply = asks.exchange(other)
    assert reply.body[0].startswith("AlreadyExists: ")
    wait_for(lambda: [state for *_, state in client.tunnels()] == ["up"], "one is up")
    client.close_tunnel(client.tunnels()[0][1])


@contextlib.contextmanager
def inside_and_config(inside: Namespace, secrets: Secrets) -> Iterator[tuple[int, int]]:
    with opened(inside.path) as netns, memfd(secrets.conf()) as config:
        yield netns, config


# ---------------------------------------------------------------- the configuration


@contextlib.contextmanager
def ten_megabytes_in_a_pipe() -> Iterator[int]:
    with subprocess.Popen(["head", "-c10M", "/dev/zero"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        yield writer.stdout.fileno()


@contextlib.contextmanager
def a_pipe_that_never_ends() -> Iterator[int]:
    with pipe() as (end, writer):
        os.write(writer, b"[Interface]\n")
        yield end


@pytest.mark.parametrize(
    ("config", "error", "fragment"),
    [
        pytest.param(lambda: memfd(""), "InvalidConfig", "is empty", id="empty"),
        pytest.param(lambda: opened("/dev/null"), "InvalidConfig", "neither a file", id="dev-null"),
        pytest.param(lambda: opened("/dev/zero"), "InvalidConfig", "neither a file", id="dev-zero"),
        pytest.param(lambda: opened("/"), "InvalidConfig", "neither a file", id="directory"),
        pytest.param(
            lambda: opened("/etc/passwd", os.O_PATH), "InvalidConfig", "Bad file", id="O_PATH"
        ),
        pytest.param(
            lambda: memfd("#" * 10_000_000),
            "LimitExceeded",
            "has 10000000 bytes: at most 1048576",
            id="10M",
        ),
        pytest.param(ten_megabytes_in_a_pipe, "LimitExceeded", "longer than 1048", id="10M-pipe"),
        pytest.param(a_pipe_that_never_ends, "Timeout", "no end of file within 5 s", id="endless"),
        pytest.param(lambda: opened("/bin/true"), "InvalidConfig", "line 1: not", id="binary"),
        pytest.param(lambda: memfd(b"# \xff"), "InvalidConfig", "line 1: not UTF-8", id="latin-1"),
        pytest.param(lambda: memfd("[Peer"), "InvalidConfig", "line 1: unknown section", id="bad"),
    ],
)
def test_no_configuration(
    refuses: Refuses, inside: Namespace, config: Callable[[], Opens[int]], error: str, fragment: str
) -> None:
    with opened(inside.path) as netns, config() as fd:
        refuses.create(error, fragment, netns, fd, {})


def test_a_configuration_that_may_not_be_read(refuses: Refuses, inside: Namespace) -> None:
    with (
        opened(inside.path) as netns,
        memfd(b"") as fd,
        opened(f"/proc/self/fd/{fd}", os.O_WRONLY) as written,
    ):
        refuses.create("InvalidConfig", "config: Bad file descriptor", netns, written, {})


@pytest.mark.parametrize(
    ("path", "error", "fragment"),
    [
        ("wg.conf", "InvalidArgs", "config_path: 'wg.conf': expected an absolute path"),
        ("/proc/self/fd/0", "InvalidArgs", "the daemon's own file"),
        ("//dev/fd/0", "InvalidArgs", "the daemon's own file"),
        ("/nowhere", "InvalidConfig", "/nowhere: No such file or directory"),
        ("/etc/shadow", "InvalidConfig", "/etc/shadow: Permission denied"),
        ("/", "InvalidConfig", "neither a file nor a pipe"),
        ("/dev/zero", "InvalidConfig", "neither a file nor a pipe"),
    ],
)
def test_no_path_of_a_configuration(
    refuses: Refuses, inside: Namespace, path: str, error: str, fragment: str
) -> None:
    refuses.create_from_paths(error, fragment, inside.path, path, {})


def test_a_fifo_that_nobody_writes_to(refuses: Refuses, inside: Namespace, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    refuses.create_from_paths(
        "Timeout", "no end of file within 5 s", inside.path, str(tmp_path / "fifo"), {}
    )


def test_a_file_of_another_user(
    refuses: Refuses, inside: Namespace, secrets: Secrets, tmp_path: Path
) -> None:
    """One of the subordinate ids that this user has."""
    theirs = tmp_path / "wg.conf"
    theirs.write_text(secrets.conf())
    theirs.chmod(0o644)
    subprocess.run(["podman", "unshare", "chown", "1:1", str(theirs)], check=True)
    owner = theirs.stat().st_uid
    assert owner not in (os.getuid(), 0)
    refuses.create_from_paths(
        "InvalidConfig",
        f"owned by uid {owner}: expected a file of yours",
        inside.path,
        str(theirs),
        {},
    )


def test_a_file_that_others_may_read_is_warned_of(
    daemon: Daemon, client: Client, inside: Namespace, secrets: Secrets, tmp_path: Path
) -> None:
    config = tmp_path / "wg.conf"
    config.write_text(secrets.conf())
    for mode, warned in ((0o600, 0), (0o640, 1)):
        config.chmod(mode)
        path = client.manager(
            "CreateTunnelFromPaths", CREATE_FROM_PATHS, inside.path, str(config), {}
        )
        client.close_tunnel(path)
        assert daemon.log.count(f"{config} holds a private key") == warned


# ---------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("option", "fragment"),
    [
        ({"colour": ("s", "red")}, "unknown option 'colour': expected one of name, interface"),
        ({"Name": ("s", "a")}, "unknown option 'Name'"),
        ({"": ("s", "a")}, "unknown option ''"),
        # of the wrong type
        ({"name": ("u", 1)}, "option 'name': expected type s, got u"),
        ({"interface": ("ay", b"wg0")}, "option 'interface': expected type s, got ay"),
        ({"lifetime": ("o", "/client")}, "option 'lifetime': expected type s, got o"),
        ({"lease": ("u", 0)}, "option 'lease': expected type h, got u"),
        ({"mtu": ("i", 1400)}, "option 'mtu': expected type u, got i"),
        ({"wait": ("b", True)}, "option 'wait': expected type s, got b"),
        ({"timeout_usec": ("x", 1)}, "option 'timeout_usec': expected type t, got x"),
        ({"ignore": ("s", "PostUp")}, "option 'ignore': expected type as, got s"),
        ({"name": ("v", ("s", "a"))}, "option 'name': expected type s, got v"),
        # of a wrong value
        ({"name": ("s", "")}, "option 'name': expected 1 to 48"),
        ({"name": ("s", "../a")}, "option 'name': expected 1 to 48"),
        ({"name": ("s", "a\n")}, "option 'name': expected 1 to 48"),
        ({"name": ("s", "a" * 49)}, "option 'name': expected 1 to 48"),
        *(
            ({"interface": ("s", name)}, "option 'interface': expected 1 to 15")
            for name in (
                "",
                "sixteen_letters_",
                "a/b",
                "wg%d",
                "%d",
                ".",
                "..",
                "a b",
                "ü",
                "wg0\n",
            )
        ),
        ({"lifetime": ("s", "eternal")}, "option 'lifetime': expected 'namespace' or 'client' or"),
        ({"lifetime": ("s", "lease")}, "option 'lease': expected with lifetime 'lease'"),
        ({"mtu": ("u", 0)}, "option 'mtu': 0: expected 576 to 65535"),
        ({"mtu": ("u", 65536)}, "option 'mtu': 65536: expected 576 to 65535"),
        ({"wait": ("s", "forever")}, "option 'wait': expected 'up'"),
        ({"timeout_usec": ("t", 0)}, "option 'timeout_usec': expected more than 0"),
        (
            {"ignore": ("as", ["PostUp", "Peer"])},
            "option 'ignore': 'Peer': expected some of FwMark",
        ),
    ],
    ids=str,
)
def test_no_option(
    refuses: Refuses, inside: Namespace, secrets: Secrets, option: dict[str, Any], fragment: str
) -> None:
    with inside_and_config(inside, secrets) as fds:
        refuses.create("InvalidArgs", fragment, *fds, option)


@pytest.mark.parametrize("lifetime", [{}, {"lifetime": ("s", "client")}], ids=["none", "client"])
def test_a_lease_for_another_lifetime(
    refuses: Refuses, inside: Namespace, secrets: Secrets, lifetime: dict[str, Any]
) -> None:
    with inside_and_config(inside, secrets) as fds, pipe() as (lease, _):
        options = {"lease": ("h", lease), **lifetime}
        refuses.create("InvalidArgs", "option 'lease': expected with lifetime", *fds, options)


@pytest.mark.parametrize(
    "lease",
    [
        pytest.param(lambda: opened("/dev/null"), id="dev-null"),
        pytest.param(lambda: opened("/"), id="directory"),
        pytest.param(lambda: memfd(""), id="memfd"),
        pytest.param(lambda: opened("/proc/self/ns/net"), id="namespace"),
    ],
)
def test_a_lease_that_cannot_hang_up(
    refuses: Refuses, inside: Namespace, secrets: Secrets, lease: Callable[[], Opens[int]]
) -> None:
    with inside_and_config(inside, secrets) as fds, lease() as fd:
        options = {"lifetime": ("s", "lease"), "lease": ("h", fd)}
        refuses.create(
            "InvalidArgs", "lease: expected one end of a pipe or a socket", *fds, options
        )


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("lo", None),
        ("other0", ["ip", "link", "add", "other0", "type", "veth"]),
        ("other0", ["ip", "tuntap", "add", "other0", "mode", "tun"]),
    ],
    ids=["lo", "veth", "persistent-tun"],
)
def test_an_interface_that_is_there_already(
    refuses: Refuses, inside: Namespace, secrets: Secrets, name: str, made: list[str] | None
) -> None:
    if made:
        inside.check(*made)
    before = inside.links()
    with inside_and_config(inside, secrets) as fds:
        options = {"interface": ("s", name)}
        refuses.create("AlreadyExists", f"already has an interface '{name}'", *fds, options)
    assert inside.links() == before


def test_an_mtu_that_ipv6_cannot_have(
    refuses: Refuses, inside: Namespace, secrets: Secrets
) -> None:
    with opened(inside.path) as netns, memfd(secrets.conf("Address = fd00::2/64")) as config:
        refuses.create(
            "InvalidConfig", "MTU: 1279 is too small", netns, config, {"mtu": ("u", 1279)}
        )


def test_a_name_that_is_taken(
    refuses: Refuses, client: Client, namespace: MakeNamespace, inside: Namespace, secrets: Secrets
) -> None:
    path = client.create(namespace(), secrets.conf(), name="mine")
    with inside_and_config(inside, secrets) as fds:
        refuses.create(
            "AlreadyExists", "there is a tunnel named 'mine'", *fds, {"name": ("s", "mine")}
        )
    client.close_tunnel(path)


# ---------------------------------------------------------------- messages


def test_descriptors_that_did_not_come(refuses: Refuses, client: Client, inside: Namespace) -> None:
    missing = without_fds(client, ROOT, MANAGER, "CreateTunnel", CREATE, (0, 1, {}))
    refuses.judge(missing, "InvalidArgs", "file descriptor 0 did not come")
    missing = without_fds(client, ROOT, MANAGER, "GetTunnelByNetns", "h", (2**32 - 1,))
    refuses.judge(missing, "InvalidArgs", "did not come with the message")


@pytest.mark.parametrize("number", [4, 16])
def test_too_many_descriptors(refuses: Refuses, number: int) -> None:
    with opened("/dev/null") as fd:
        refuses(
            "InvalidArgs",
            "more than 3 file descriptors",
            *(ROOT, MANAGER, "ListTunnels", "ah", ([fd] * number,)),
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


# ---------------------------------------------------------------- callers that leave


def test_a_caller_that_leaves_while_its_configuration_is_read(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, secrets: Secrets
) -> None:
    with opened(inside.path) as netns, pipe() as (config, writer), Client(bus.address) as leaver:
        create = leaver.message(ROOT, MANAGER, "CreateTunnel", CREATE, (netns, config, {}))
        leaver.connection.send(create)
        leaver.tunnels()  # so the call has begun
        leaver.connection.sock.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: not client.has_owner(leaver.unique_name), "it has left")
        os.write(writer, secrets.conf().encode())
        os.close(writer)
    daemon.assert_idle()
    assert client.tunnels() == []


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 3, 5, 8, 13])
def test_a_caller_that_leaves_before_its_reply(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    inside: Namespace,
    secrets: Secrets,
    milliseconds: int,
) -> None:
    """Wherever creating has come to by then: it is undone, unless the reply is on its way."""
    with inside_and_config(inside, secrets) as fds, Client(bus.address) as leaver:
        create = leaver.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {}))
        leaver.connection.send(create)
        time.sleep(milliseconds / 1000)
        leaver.connection.sock.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: not client.has_owner(leaver.unique_name), "it has left")
    wait_for(lambda: {state for *_, state in client.tunnels()} <= {"up"}, "it is up or undone")
    if milliseconds == 0:
        assert client.tunnels() == []
    if client.tunnels():
        client.close_tunnel(client.tunnels()[0][1])
    assert set(inside.links()) == {"lo"}


def test_a_caller_that_wants_no_reply_may_leave(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, secrets: Secrets
) -> None:
    with inside_and_config(inside, secrets) as fds, Client(bus.address) as leaver:
        leaver.send(leaver.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {})))
        leaver.bus("GetId")  # so that the bus has it
    wait_for(lambda: [state for *_, state in client.tunnels()] == ["up"], "the tunnel is up")
    client.close_tunnel(client.tunnels()[0][1])


# ---------------------------------------------------------------- time, ports and engines


@pytest.mark.parametrize("config", [a_pipe_that_never_ends, lambda: memfd("")], ids=["fifo", "1us"])
def test_the_callers_time_is_over(
    refuses: Refuses, inside: Namespace, config: Callable[[], Opens[int]]
) -> None:
    usec = 100_000 if config is a_pipe_that_never_ends else 1
    began = time.monotonic()
    with opened(inside.path) as netns, config() as fd:
        if usec == 1:
            os.write(fd, Secrets().conf().encode())
        refuses.create("Timeout", "not up within", netns, fd, {"timeout_usec": ("t", usec)})
    assert time.monotonic() - began < 3


def test_a_port_that_is_in_use(refuses: Refuses, inside: Namespace, secrets: Secrets) -> None:
    taken, port = udp_port_in_use()
    config = secrets.conf(f"Address = 10.9.0.2/24\nListenPort = {port}")
    with taken, opened(inside.path) as netns, memfd(config) as fd:
        refuses.create("EngineFailed", "ListenPort: the port is in use on the host", netns, fd, {})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return copied_package(tmp_path)


VERSION = '#!/bin/sh\n[ "$1" != --version ] || exec echo "wireguard-go v0"\n'


@pytest.mark.parametrize(
    ("engine", "mode", "error", "fragment"),
    [
        pytest.param(None, 0, "EngineFailed", "No such file or directory", id="missing"),
        pytest.param(VERSION, 0o600, "EngineFailed", "Permission denied", id="not-executable"),
        pytest.param("rubbish", 0o700, "EngineFailed", "Exec format error", id="no-program"),
        pytest.param(
            f"{VERSION}echo out of luck >&2; exit 3",
            0o700,
            "EngineFailed",
            "wireguard-go ended with status 3: out of luck",
            id="dies",
        ),
        pytest.param(
            f"{VERSION}exec sleep 1000", 0o700, "Timeout", "no answer within 10 s", id="hangs"
        ),
    ],
)
def test_no_engine(
    start_daemon: Callable[..., Daemon],
    package: Path,
    inside: Namespace,
    secrets: Secrets,
    engine: str | None,
    mode: int,
    error: str,
    fragment: str,
) -> None:
    binary = package / "bin/wireguard-go"
    binary.unlink()
    if engine is not None:
        binary.write_text(engine)
        binary.chmod(mode)
    started = start_daemon(PYTHONPATH=str(package.parent))
    for _ in range(2):
        with inside_and_config(inside, secrets) as fds:
            refuses = Refuses(started.client, secrets)
            refuses.create(error, fragment, *fds, {})
        assert set(inside.links()) == {"lo"}
    assert started.client.tunnels() == []
    secrets.assert_hidden_in(started.log)


def test_as_many_tunnels_as_the_limit_allows(
    start_daemon: Callable[..., Daemon], package: Path, namespace: MakeNamespace, secrets: Secrets
) -> None:
    manager = package / "manager.py"
    text = manager.read_text()
    assert text.count("MAX_TUNNELS: Final = 256\n") == 1
    manager.write_text(text.replace("MAX_TUNNELS: Final = 256\n", "MAX_TUNNELS: Final = 2\n"))
    started = start_daemon(PYTHONPATH=str(package.parent))
    client = started.client
    assert client.get(ROOT, "MaxTunnels", MANAGER) == 2
    first, _ = (client.create(namespace(), secrets.conf()) for _ in range(2))
    third = namespace()
    with inside_and_config(third, secrets) as fds:
        Refuses(client, secrets).create("LimitExceeded", "there are 2 tunnels already", *fds, {})
    client.close_tunnel(first)
    client.create(third, secrets.conf())
    started.assert_idle()
