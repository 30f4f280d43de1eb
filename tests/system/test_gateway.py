"""The gateway as a process: streams and datagrams into a real tunnel, and what befalls it."""

import hashlib
import os
import random
import resource
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.capture import Capture
from support.containers import podman
from support.daemon import Daemon
from support.gateway_process import (
    GatewayProcess,
    ask_socks_5,
    echo_inside,
    exactly,
    socks_5,
)
from support.namespaces import Namespace
from support.processes import resident, status, wait_for
from support.sockets import name_server
from support.stage import Control, Stage
from wg4netnsd.gateway.protocol import (
    AddForward,
    ForwardAdded,
    Refusal,
    RemoveForward,
    SetResolvers,
)
from wg4netnsd.gateway.socks import encode_datagram, parse_datagram


@pytest.fixture
def tunnelled(daemon: Daemon, inside: Namespace, stage: Stage) -> Namespace:
    """A namespace with a tunnel to the far end."""
    daemon.client.create(inside, stage.conf(0))
    return inside


@pytest.fixture
def gateway(tunnelled: Namespace) -> Iterator[GatewayProcess]:
    with GatewayProcess(tunnelled) as started:
        yield started


def both_ways(connection: socket.socket, data: bytes) -> bytes:
    """Send it all, half-close, and return what comes back until the end."""
    sender = threading.Thread(
        target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR))
    )
    sender.start()
    received = b""
    while more := connection.recv(1 << 20):
        received += more
    sender.join(30)
    return received


def test_a_stream_arrives_whole(gateway: GatewayProcess, stage: Stage) -> None:
    port = gateway.proxy()
    sent = random.Random(1).randbytes(10_000_000)
    for host in (stage.far.ipv4, stage.far.ipv6):
        with socks_5(port, host, stage.far.echo_port) as connection:
            assert both_ways(connection, sent) == sent
    counters = gateway.settled()
    assert counters == (0, 2, 0, 0, 2 * len(sent), 2 * len(sent))


def test_the_programs_of_every_day_take_it_as_their_proxy(
    gateway: GatewayProcess, stage: Stage, tunnelled: Namespace
) -> None:
    address = stage.clients[0].ipv4
    page = b"HTTP/1.0 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello"
    serve = f"""
import socket
served = socket.create_server(({address!r}, 8080))
print("up", flush=True)
while True:
    one, _ = served.accept()
    while not one.recv(65536).endswith(b"\\r\\n\\r\\n"): pass
    one.sendall(b"{page.decode()}")
    one.close()
"""
    with tunnelled.popen("/usr/bin/python3", "-c", serve, stdout=subprocess.PIPE) as web:
        assert web.stdout and web.stdout.readline() == "up\n"
        port = gateway.proxy()
        url = f"http://{address}:8080/"
        ways = (
            ["--proxy", f"socks5://127.0.0.1:{port}"],
            ["--proxy", f"socks5h://127.0.0.1:{port}"],
            ["--proxy", f"socks4://127.0.0.1:{port}"],
            ["--proxy", f"socks4a://127.0.0.1:{port}"],
            ["--proxy", f"http://127.0.0.1:{port}"],
            ["--proxy", f"http://127.0.0.1:{port}", "--proxytunnel"],
        )
        for way in ways:
            assert _fetch(url, way) == "hello", way
        web.kill()


def _fetch(url: str, way: list[str]) -> str:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "20", *way, url],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_datagrams_by_socks_and_by_a_forward(
    gateway: GatewayProcess, stage: Stage, tunnelled: Namespace
) -> None:
    address = stage.clients[0].ipv4
    with echo_inside(tunnelled, address, udp=True) as far:
        port = gateway.proxy()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"\5\1\0\5\3\0\1\0\0\0\0\0\0")
            reply = exactly(connection, 12)
            assert reply[:6] == b"\5\0\5\0\0\1"
            relay = socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:], "big")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
                mine.settimeout(30)
                mine.sendto(encode_datagram(address, far, b"hello"), relay)
                assert parse_datagram(mine.recv(65536)) == (address, far, b"hello")
        gateway.settled()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind(("127.0.0.1", 0))
            gateway.add(AddForward("udp", "local", "udp", f"{address}:{far}"), listener)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
                mine.settimeout(30)
                mine.connect(listener.getsockname())
                mine.send(b"hello")
                assert mine.recv(65536) == b"hello"


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_a_service_of_the_host_is_published(
    version: str, gateway: GatewayProcess, stage: Stage, tunnelled: Namespace
) -> None:
    address = getattr(stage.clients[0], version)
    tunnelled.ip("address")  # none is tentative any more
    with socket.create_server(("127.0.0.1", 0)) as web:
        target = f"127.0.0.1:{web.getsockname()[1]}"
        spec = AddForward("web", "remote", target=target, listen=[(address, 8080)])
        added, fds = gateway.ask_fds(spec._replace(proxy_protocol=True))
        shown = f"[{address}]:8080" if ":" in address else f"{address}:8080"
        assert added == ForwardAdded([shown])
        (listener,) = fds  # for the gateway's successor
        ask = f"""
import socket
asked = socket.create_connection(({address!r}, 8080), 20)
asked.sendall(b"who?")
print(asked.getsockname()[1], asked.recv(100).decode())
"""
        with tunnelled.popen("/usr/bin/python3", "-c", ask, stdout=subprocess.PIPE) as client:
            connection, _ = web.accept()
            with connection:
                header = exactly(connection, 28 if version == "ipv4" else 52)
                assert exactly(connection, 4) == b"who?"
                connection.sendall(b"me")
            assert client.stdout
            theirs, heard = client.stdout.read().split()
            assert heard == "me"
            assert header[-4:] == int(theirs).to_bytes(2, "big") + (8080).to_bytes(2, "big")
        assert gateway.settled() == (0, 1, 0, 0, 4, 2)

        gateway.ask(RemoveForward("web"))
        with socket.socket(fileno=listener) as kept:
            assert gateway.add(spec, kept) == [shown]
        gateway.ask(RemoveForward("web"))
        taken = gateway.add(spec)
        assert taken == [shown]
        refused = gateway.ask(spec._replace(id="another"))
        assert isinstance(refused, Refusal)
        assert (refused.error, "8080" in refused.text) == ("AlreadyExists", True)


def test_its_sockets_are_served_anew_and_connections_stay(
    gateway: GatewayProcess, stage: Stage
) -> None:
    port = gateway.proxy()
    with socks_5(port, stage.far.ipv4, stage.far.echo_port) as before:
        gateway.sockets[0].kill()
        with socks_5(port, stage.far.ipv4, stage.far.echo_port):
            pass  # it has some spare ones
        with socket.create_connection(("127.0.0.1", port), timeout=30) as waiting:
            name = stage.far.ipv6.encode()
            waiting.sendall(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + b"\0\7")
            assert exactly(waiting, 2) == b"\5\0"
            wait_for(lambda: gateway.counters().open == 2, "it waits")
            gateway.serve_sockets()
            assert exactly(waiting, 4)[:2] == b"\5\0"
        before.sendall(b"still here")
        assert exactly(before, 10) == b"still here"


def test_it_outlives_a_daemon_and_ends_with_the_last_holder(
    gateway: GatewayProcess, stage: Stage
) -> None:
    port = gateway.proxy()
    with socks_5(port, stage.far.ipv4, stage.far.echo_port) as connection:
        kept = gateway.control.dup()
        gateway.control.close()  # as a daemon that is killed; the fd store has another
        connection.sendall(b"hello")
        assert exactly(connection, 5) == b"hello"
        gateway.control = kept
        assert gateway.counters().open == 1
        logged = gateway.end()
        assert gateway.process.returncode == 0, logged
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


OTHER_UID = ("setpriv", "--reuid=1", "--clear-groups", "--inh-caps=-all", "/usr/bin/python3", "-c")
TRY_TCP = """
import socket, sys
asked = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
asked.settimeout(20)
try:
    asked.sendall(b"\\5\\1\\0")
    print(asked.recv(2))
except ConnectionError:
    print(b"")
"""
TRY_UNIX = TRY_TCP.replace(
    'socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)',
    "socket.socket(socket.AF_UNIX); asked.connect(sys.argv[1])",
)
TRY_UDP = """
import socket, sys
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.settimeout(1)
asked.connect(("127.0.0.1", int(sys.argv[1])))
asked.send(b"hello")
try:
    print(asked.recv(100))
except TimeoutError:
    print(b"")
"""


@pytest.mark.distribution
def test_another_uid_is_refused(
    gateway: GatewayProcess, stage: Stage, tunnelled: Namespace
) -> None:
    port = gateway.proxy()
    assert podman("unshare", *OTHER_UID, TRY_TCP, str(port)).strip() == "b''"
    assert gateway.counters()[:3] == (0, 0, 1)
    with socks_5(port, stage.far.ipv4, stage.far.echo_port):
        pass
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        Path(directory).chmod(0o755)
        path = f"{directory}/proxy"
        listener.bind(path)
        Path(path).chmod(0o666)
        listener.listen()
        gateway.add(AddForward("unix", "proxy"), listener)
        assert podman("unshare", *OTHER_UID, TRY_UNIX, path).strip() == "b''"
    with (
        echo_inside(tunnelled, stage.clients[0].ipv4, udp=True) as far,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(("127.0.0.1", 0))
        spec = AddForward("udp", "local", "udp", f"{stage.clients[0].ipv4}:{far}")
        gateway.add(spec, listener)
        theirs = str(listener.getsockname()[1])
        assert podman("unshare", *OTHER_UID, TRY_UDP, theirs).strip() == "b''"
        gateway.ask(RemoveForward("udp"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener_of_all:
            listener_of_all.bind(("127.0.0.1", 0))
            gateway.add(spec._replace(access="anyone"), listener_of_all)
            theirs = str(listener_of_all.getsockname()[1])
            assert podman("unshare", *OTHER_UID, TRY_UDP, theirs).strip() == "b'hello'"
    logged = gateway.end()
    assert logged.count(": refused a client of uid ") == 3, logged
    assert f"uid {os.geteuid()}" not in logged


IDLE = 1000
MEGABYTES = 40  # with 1,000 idle connections; measured: 21 to 23


@pytest.fixture
def many_fds() -> Iterator[None]:
    """For a test that holds more than the 1,024 descriptors that a login allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_idle_connections_cost_little(
    many_fds: None, gateway: GatewayProcess, stage: Stage
) -> None:
    port = gateway.proxy()
    with socks_5(port, stage.far.ipv4, stage.far.echo_port):
        before = resident(gateway.pid)
    held = []
    try:
        for _ in range(IDLE):
            held.append(socks_5(port, stage.far.ipv4, stage.far.echo_port))
        assert gateway.counters().open == len(held)
        assert resident(gateway.pid) < MEGABYTES << 20
        each = (resident(gateway.pid) - before) / len(held)
        assert each < 8 << 10, f"{each} bytes for each"
        for connection in held:
            connection.sendall(b"x")
        for connection in held:
            assert exactly(connection, 1) == b"x"
    finally:
        for connection in held:
            connection.close()
    assert gateway.settled().failed == 0


def test_with_a_full_table_of_descriptors_clients_wait_or_are_told(
    tunnelled: Namespace, stage: Stage
) -> None:
    with GatewayProcess(tunnelled, max_fds=64) as gateway:
        port = gateway.proxy()
        held, told = [], 0
        for _ in range(20):
            held.append(socks_5(port, stage.far.ipv4, stage.far.echo_port))
        more = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
        for each in more:
            each.sendall(b"\5\1\0\5\1\0\1" + socket.inet_aton(stage.far.ipv4) + b"\0\7")
        time.sleep(0.5)  # nothing tells that it has no descriptor any more
        for each in held:
            each.sendall(b"hello")
            assert exactly(each, 5) == b"hello"
            each.close()
        for each in more:  # all get an answer, now or once others have left
            assert exactly(each, 2) == b"\5\0"
            code = exactly(each, 10)[1]
            assert code in (0, 1)
            told += code
            each.close()
        assert told < len(more)
        gateway.settled()
        with socks_5(port, stage.far.ipv4, stage.far.echo_port) as connection:
            connection.sendall(b"hello")
            assert exactly(connection, 5) == b"hello"


def test_names_are_looked_up_at_the_tunnels_servers_alone(
    gateway: GatewayProcess, stage: Stage, tunnelled: Namespace, control: Control
) -> None:
    """The capture looks for the name in whatever passes outside the tunnel."""
    port = gateway.proxy()
    name = "confidential-name.test"
    with Capture(control, b"confidential-name") as capture:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            assert ask_socks_5(connection, name, 7) == 4  # there is no server
        with name_server(tunnelled, "198.51.100.53", stage.far.ipv4):
            gateway.ask(SetResolvers(["198.51.100.53"], ["test"]))
            for each in (name, "confidential-name"):
                with socks_5(port, each, stage.far.echo_port) as connection:
                    connection.sendall(b"hello")
                    assert exactly(connection, 5) == b"hello"
        gateway.ask(SetResolvers([stage.far.ipv4], []))  # where none runs
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            assert ask_socks_5(connection, name, 7) == 4
        seen = capture.finish()
    # A client's question to its proxy is on loopback.
    assert not [each for each in seen.leaks if each.interface != "lo" or 53 in each.ports]


def test_it_has_given_up_what_it_does_not_need(gateway: GatewayProcess) -> None:
    assert Path(f"/proc/{gateway.pid}/comm").read_text() == "wg4netns-gate\n"
    now = status(Path(f"/proc/{gateway.pid}"))
    assert (now["NoNewPrivs"], now["Seccomp"], now["Threads"]) == ("1", "2", "1")
    with pytest.raises(PermissionError):  # it is not dumpable
        Path(f"/proc/{gateway.pid}/environ").read_bytes()


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (AddForward("1", "proxy"), "InvalidArgs"),  # without a listener
        (AddForward("1", "local", target="nonsense"), "InvalidArgs"),
        (AddForward("1", "local", target="unix:/run/x"), "InvalidArgs"),
        (AddForward("1", "remote", target="h:1"), "InvalidArgs"),
        (AddForward("1", "remote", target="h:1", listen=[("name", 1)]), "InvalidArgs"),
        (AddForward("1", "remote", target="h:1", listen=[("192.0.2.77", 1)]), "InvalidArgs"),
        (AddForward("1", "remote", "udp", "unix:/run/x", listen=[("::1", 1)]), "InvalidArgs"),
        (AddForward("1", "local", target="h:1", credentials={"a": "b"}), "InvalidArgs"),
        (AddForward("1", "local", target="h:1", proxy_protocol=True), "InvalidArgs"),
        (AddForward("1", "local", target="h:1", connect_seconds=0), "InvalidArgs"),
    ],
)
def test_a_forward_that_can_not_be_is_refused(
    spec: AddForward, error: str, gateway: GatewayProcess
) -> None:
    refused = gateway.ask(spec)
    assert isinstance(refused, Refusal)
    assert refused.error == error, refused


def test_a_listener_is_what_it_claims_to_be(gateway: GatewayProcess) -> None:
    with (
        open("/dev/null") as file,
        socket.socket() as unbound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        for each in (file, unbound, datagrams):
            refused = gateway.ask(AddForward("1", "proxy"), each.fileno())
            assert isinstance(refused, Refusal)
            assert refused.error == "InvalidArgs"
        refused = gateway.ask(AddForward("1", "local", "udp", "h:1"), unbound.fileno())
        assert isinstance(refused, Refusal)


def test_a_password_is_asked_for(gateway: GatewayProcess, stage: Stage) -> None:
    known = {"ann": hashlib.sha256(b"secret").hexdigest()}
    port = gateway.proxy(credentials=known)
    for password, answer in ((b"secret", b"\1\0"), (b"wrong!", b"\1\1")):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"\5\2\0\2\1\3ann\6" + password)
            assert exactly(connection, 4) == b"\5\2" + answer
