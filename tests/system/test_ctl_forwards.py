"""wg4netnsctl's proxy, forward, publish, forwards, unforward and connect."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.ctl import Ctl, ctl_with_office
from support.daemon import Daemon
from support.forwards import connect, echo, gateways, host_server, receive, socks5
from support.processes import wait_for
from support.stage import Stage

LOCAL = "127.0.0.1"


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        yield ctl
        ctl.down_all(client)


@pytest.fixture
def up(ctl: Ctl) -> Ctl:
    ctl.check("up", "office")
    return ctl


@pytest.fixture
def far(stage: Stage) -> str:
    """The far end's echo."""
    return f"{stage.far.ipv4}:{stage.far.echo_port}"


def port_in(text: str) -> int:
    """The first port that is listened on."""
    found = re.match(r"127\.0\.0\.1:(\d+)", text)
    assert found, text
    return int(found[1])


# ---------------------------------------------------------------- forwards


def test_forward_list_and_unforward(up: Ctl, far: str) -> None:
    printed = up.check("forward", "office", f"0:{far}")
    port = port_in(printed)
    assert printed == f"{LOCAL}:{port} -> {far}\n"
    with connect((LOCAL, port)) as one:
        echo(one, b"x" * 2048)
        (shown,) = json.loads(up.check("forwards", "--json", "office"))
        head, line = up.check("forwards", "office").splitlines()
    assert shown["id"] == "1"
    assert (shown["kind"], shown["listening"], shown["target"]) == (
        "local",
        [f"{LOCAL}:{port}"],
        far,
    )
    assert shown["counters"]["bytes_in"] == 2048
    assert " ".join(head.split()) == "ID KIND LISTENING TARGET OPEN TOTAL REFUSED IN OUT"
    assert line.split()[:7] == ["1", "local", f"{LOCAL}:{port}", far, "1", "1", "0"]
    assert "2.00 KiB" in line
    shown = up.check("show", "office")
    assert f"forward: 1\n  kind: local (tcp)\n  listening: {LOCAL}:{port}\n" in shown
    up.check("unforward", "office", f"{LOCAL}:{port}")
    assert up.check("forwards", "office") == ""
    refused = up.run("unforward", "office", "1")
    assert refused.returncode == 3
    assert "office has no forward '1'" in refused.stderr


def test_forward_to_a_unix_socket(up: Ctl, far: str, tmp_path: Path) -> None:
    up.check("forward", "office", f"{tmp_path}/socket:{far}")
    with connect(f"{tmp_path}/socket") as one:
        echo(one)


def test_publish(up: Ctl, client: Client, stage: Stage) -> None:
    with host_server() as (_, port):
        found = json.loads(up.check("publish", "--json", "office", f"7007:localhost:{port}"))
        assert found["kind"] == "remote"
        assert f"{stage.clients[0].ipv4}:7007" in found["listening"]
        knock = f"exec 3<>/dev/tcp/{stage.clients[0].ipv4}/7007; echo knock >&3; head -c6 <&3"
        assert up.check("exec", "office", "--", "bash", "-c", knock) == "knock\n"


def test_an_address_in_use(up: Ctl, far: str) -> None:
    with socket.create_server((LOCAL, 0)) as taken:
        port = taken.getsockname()[1]
        done = up.run("forward", "office", f"{port}:{far}")
    assert done.returncode == 4
    assert f"listen: {LOCAL}:{port}: Address already in use" in done.stderr
    assert "'wg4netnsctl forwards NAME' lists these" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("forward", "office", "80"), 2, "expected [tcp:|udp:][ADDRESS:]PORT:HOST:PORT"),
        (("forward", "nowhere", "0:x:1"), 3, "no tunnel"),
        (("forward", "office", "0.0.0.0:0:x:1"), 1, "other machines can connect"),
        (("publish", "office", "x"), 2, "expected [tcp:|udp:]PORT:HOST:PORT"),
        (("proxy", "nowhere"), 3, "neither a tunnel that is up nor a configuration"),
        (("proxy", "./nowhere.conf"), 5, "No such file"),
        (("connect", "office", "localhost", "0"), 2, "expected a port"),
        (("connect", "office", "localhost", "9"), 1, "port 9: Connection refused"),
        (("connect", "nowhere", "localhost", "9"), 3, "no tunnel"),
        (("connect", "--pass-fd", "office", "localhost", "9"), 1, "no socket that takes"),
    ],
)
def test_mistakes(up: Ctl, arguments: tuple[str, ...], status: int, expected: str) -> None:
    done = up.run(*arguments)
    assert (done.returncode, expected in " ".join(done.stderr.split())) == (status, True), done


# ---------------------------------------------------------------- a proxy


def test_a_proxy_on_a_tunnel_that_is_up(up: Ctl, stage: Stage, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    printed = up.check("proxy", "--listen=0", f"--listen=unix:{place}", "office")
    port = port_in(printed)
    assert printed == f"{LOCAL}:{port} unix:{place} -> proxy\n"
    for proxy in ((LOCAL, port), str(place)):
        with socks5(proxy, stage.far.ipv4, stage.far.echo_port) as connection:
            echo(connection)


def test_a_proxy_with_credentials(up: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("me:secret\n")
    file.chmod(0o600)
    printed = up.check("proxy", "--listen=0", f"--credentials={file}", "office")
    with connect((LOCAL, port_in(printed))) as connection:
        connection.sendall(b"\5\1\0")
        assert receive(connection, 2) == b"\5\xff"


def test_a_proxy_in_the_foreground(ctl: Ctl, client: Client, stage: Stage) -> None:
    """From a configuration: the tunnel ends with the command."""
    process = ctl.popen("proxy", "--listen=0", "office", stderr=subprocess.PIPE)
    with process:
        assert process.stderr
        port = port_in(process.stderr.readline())
        assert "office is up" in process.stderr.readline()
        with socks5((LOCAL, port), stage.far.ipv4, stage.far.echo_port) as connection:
            echo(connection)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert client.tunnels() == []
    assert gateways() == set()


# ---------------------------------------------------------------- options of up


@pytest.mark.parametrize("how", ["up", "foreground"])
def test_with_a_new_tunnel(ctl: Ctl, client: Client, stage: Stage, far: str, how: str) -> None:
    options = [f"--forward=0:{far}", "--proxy=0", "--publish=7007:localhost:9"]
    if how == "up":
        ctl.check("up", *options, "office")
        shown = json.loads(ctl.check("forwards", "--json", "office"))
    else:
        process = ctl.popen("up", "--foreground", *options, "office")
        found = wait_for(
            lambda: ctl.run("forwards", "--json", "office").stdout.count("kind") == 3,
            "they are there",
        )
        assert found
        shown = json.loads(ctl.check("forwards", "--json", "office"))
        process.terminate()
        with process:
            assert process.wait(30) == 0
    assert [each["kind"] for each in shown] == ["local", "proxy", "remote"]


@pytest.mark.parametrize("how", [(), ("--foreground",)])
def test_a_tunnel_whose_forward_fails_is_none(ctl: Ctl, client: Client, how: tuple[str]) -> None:
    done = ctl.run("up", *how, "--proxy=192.0.2.99:1", "office")
    assert done.returncode == 1
    assert "other machines can connect" in " ".join(done.stderr.split())
    assert client.tunnels() == []


# ---------------------------------------------------------------- connect


def test_connect(up: Ctl, stage: Stage) -> None:
    size = 3 << 20
    command = ("connect", "office", stage.far.ipv4, str(stage.far.echo_port))
    with up.popen(*command, stdin=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin and process.stdout
        sent = os.urandom(size)

        def send() -> None:
            assert process.stdin
            with open(os.dup(process.stdin.fileno()), "wb") as writer:
                process.stdin.close()
                writer.write(sent)

        sender = threading.Thread(target=send)
        sender.start()
        with open(os.dup(process.stdout.fileno()), "rb") as reader:
            assert reader.read() == sent
        sender.join()
        assert process.wait(30) == 0


def test_connect_by_descriptor(up: Ctl, stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = up.popen(
            "connect",
            "--pass-fd",
            "office",
            stage.far.ipv4,
            str(stage.far.echo_port),
            stdout=theirs,
        )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        assert process.wait(30) == 0
        with socket.socket(fileno=fds[0]) as connection:
            connection.settimeout(30)
            echo(connection)
