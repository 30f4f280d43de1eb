"""The stage itself: a test that fails here makes all others worthless."""

import json
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.bus import Bus, Client, busctl
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.processes import wait_for
from support.stage import Control, ControlError, Stage, keys, preshared_key
from support.transfer import iperf3

LINK = "far-moving"


def answers(host: str, patience: int = 1) -> bool:
    """Whether it answers a ping."""
    ping = ["ping", "-n", "-c1", f"-W{patience}", host]
    return subprocess.run(ping, stdout=subprocess.DEVNULL).returncode == 0


def listens(endpoint: str) -> bool:
    """Whether a UDP port is open, as far as ICMP denies it."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0.3)
        sender.connect((host, int(port)))
        sender.send(b"anyone?")
        try:
            sender.recv(1)
        except ConnectionRefusedError:
            return False
        except TimeoutError:
            return True
    raise AssertionError("wireguard-go answers what is no message")


def ip(*arguments: str) -> Any:
    command = ["ip", "-json", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout or "[]")


def host_addresses() -> set[str]:
    (shown,) = ip("address", "show", "dev", LINK)
    found = [each for each in shown["addr_info"] if each["scope"] == "global"]
    assert not any(each.get("tentative") for each in found)
    return {f"{each['local']}/{each['prefixlen']}" for each in found}


def default_routes() -> list[dict[str, Any]]:
    return [each for each in ip("route", "show", "default") if each["dev"] == LINK]


def resolved(name: str) -> list[str]:
    """Its addresses in the order of RFC 6724; none if it does not resolve."""
    try:
        found = socket.getaddrinfo(name, 51820, type=socket.SOCK_DGRAM)
    except socket.gaierror:
        return []
    return [str(address[0]) for *_, address in found]


def test_the_suite_is_an_ordinary_user_in_the_initial_user_namespace(stage: Stage) -> None:
    assert os.geteuid() != 0
    assert Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    status = Path("/proc/self/status").read_text()
    assert "CapEff:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t0\n" in status


def test_the_host_has_an_interface_that_is_named_wg0_too(stage: Stage) -> None:
    assert Path("/sys/class/net/wg0").exists()


def test_roots_namespace_can_be_opened_and_not_entered(stage: Stage) -> None:
    command = ["nsenter", f"--net={stage.roots_netns}", "true"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stderr


@pytest.mark.parametrize(
    "host", ["far-v4.test", "far-v6.test", "192.0.2.2", "2001:db8::2", "192.0.3.2", "2001:db8:3::2"]
)
def test_the_far_end_is_reached_from_the_host(stage: Stage, host: str) -> None:
    assert answers(host, patience=5)


@pytest.mark.parametrize("nested", [False, True])
def test_a_namespace_starts_with_nothing_but_lo(namespace: MakeNamespace, nested: bool) -> None:
    inside = namespace(nested=nested)
    assert set(inside.links()) == {"lo"}
    assert inside.check("id", "-u") == "0\n"
    descriptor = inside.open()
    status = os.fstat(descriptor)
    os.close(descriptor)
    assert inside.id == (status.st_dev, status.st_ino)


def test_a_bus_answers_its_clients(bus: Bus, client: Client) -> None:
    assert client.has_owner("org.freedesktop.DBus")
    assert not client.has_owner("org.wg4netns1")
    (names,) = busctl(
        bus.address,
        "call",
        "org.freedesktop.DBus",
        "/",
        "org.freedesktop.DBus",
        "ListNames",
    )["data"]
    assert client.unique_name in names


def test_each_client_of_the_far_end_has_keys_of_its_own(stage: Stage) -> None:
    assert len({each.private_key for each in stage.clients}) == len(stage.clients) >= 24
    assert len(keys().public) == len(preshared_key()) == 44


def test_one_name_s_first_address_is_dead(stage: Stage) -> None:
    assert resolved("moving.test") == ["2001:db8:3::2", "192.0.3.2"]
    assert resolved("dead-first.test") == ["2001:db8:3::dead", "192.0.3.2"]
    assert not answers("2001:db8:3::dead")


def test_the_short_engine_is_this_user_s_to_run(stage: Stage) -> None:
    engine = Path(stage.short_engine)
    assert engine.name == "wireguard-go"
    assert os.access(engine, os.R_OK | os.X_OK)


# --- what the suite asks of root -----------------------------------------------------------


def test_the_control_is_root_s_and_listens_to_this_user(stage: Stage) -> None:
    status = os.stat(stage.control)
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 0o600)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(stage.control)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert int.from_bytes(credentials[4:8], "little") == 0


def test_the_moving_far_end_stops_and_starts(control: Control, stage: Stage) -> None:
    endpoint = stage.moving.endpoint_v4
    assert listens(endpoint)
    for _ in range(3):
        control.far_stop()
        assert not listens(endpoint)
        assert answers("192.0.3.2")
        control.far_start()
        assert listens(endpoint)
    control.far_start()  # it has been


def test_the_moving_far_end_moves(control: Control, stage: Stage) -> None:
    control.far_move("192.0.3.7")
    assert answers("192.0.3.7")
    assert listens("192.0.3.7:51820")
    assert not answers("192.0.3.2")
    assert answers("2001:db8:3::2")
    control.far_move("192.0.3.7")
    assert answers("192.0.3.7")


def test_the_host_gets_and_loses_addresses(control: Control) -> None:
    before = host_addresses()
    assert before == {"192.0.3.1/24", "2001:db8:3::1/64"}
    for address in ("192.0.3.9/24", "2001:db8:3::9/64"):
        control.host_address_add(address)
        assert host_addresses() == before | {address}
        control.host_address_delete(address)
        assert host_addresses() == before
    control.host_address_add("192.0.3.9/24")
    control.host_address_delete("192.0.3.1/24")
    assert host_addresses() == {"192.0.3.9/24", "2001:db8:3::1/64"}
    assert answers("192.0.3.2")


def test_the_host_gets_and_loses_a_default_route(control: Control) -> None:
    assert not default_routes()
    control.host_default_add()
    (route,) = default_routes()
    assert (route["gateway"], route["metric"]) == ("192.0.3.2", 4242)
    control.host_default_delete()
    assert not default_routes()


def test_the_host_s_link_goes_down_and_up(control: Control) -> None:
    before = host_addresses()
    control.host_link_down()
    assert not answers("192.0.3.2")
    control.host_link_up()
    assert host_addresses() == before
    assert answers("192.0.3.2")
    assert answers("2001:db8:3::2")


def test_a_name_s_addresses_change(control: Control) -> None:
    assert resolved("some-name.test") == []
    control.host_name("some-name.test", "192.0.3.7")
    assert resolved("some-name.test") == ["192.0.3.7"]
    control.host_name("some-name.test", "192.0.3.2", "2001:db8:3::2")
    assert resolved("some-name.test") == ["2001:db8:3::2", "192.0.3.2"]
    control.host_name("some-name.test")
    assert resolved("some-name.test") == []
    control.host_name("far.test", "192.0.2.3")
    assert resolved("far.test") == ["192.0.2.3"]
    assert resolved("far-v4.test") == ["192.0.2.2"]


def test_reset_undoes_it_all(control: Control, stage: Stage) -> None:
    hosts, addresses = Path("/etc/hosts").read_text(), host_addresses()
    control.host_name("far.test")
    control.host_name("other.test", "192.0.3.2")
    control.host_address_add("192.0.3.9/24")
    control.host_address_delete("192.0.3.1/24")
    control.host_address_delete("2001:db8:3::1/64")
    control.host_default_add()
    control.host_link_down()
    control.far_stop()
    control.far_move("192.0.3.7")
    for _ in range(2):
        control.reset()
        assert Path("/etc/hosts").read_text() == hosts
        assert host_addresses() == addresses
        assert not default_routes()
        assert listens(stage.moving.endpoint_v4)
        assert answers("192.0.3.2")
        assert answers("2001:db8:3::2")
        assert not answers("192.0.3.7")


@pytest.mark.parametrize(
    "request_",
    [
        "",
        "far",
        "far stop now",
        "far move",
        "far move 192.0.2.7",
        "far move 192.0.3.0",
        "far move 192.0.3.1",
        "far move 2001:db8:3::7",
        "far move 192.0.3.7/24",
        "far move $(id)",
        "host address add 192.0.2.9/24",
        "host address add 192.0.3.9/16",
        "host address add 2001:db8:3::9%lo/64",
        "host address replace 192.0.3.9/24",
        "host address delete 192.0.3.9/24",
        "host default delete",
        "host link sideways",
        "host-name",
        "host-name localhost 192.0.3.2",
        "host-name example.org 192.0.3.2",
        "host-name a.b.test 192.0.3.2",
        "host-name other.test 127.0.0.1",
        "host-name other.test 192.0.3.2 ::1",
        "host-name other.test 192.0.3.2 #",
        "reset all",
        "engine",
        "engine environment",
        "engine environment self",
        "engine environment 1",
        "engine descriptors 1/../1",
        "engine memory 1",
        "stock mtu 1500",
        "x" * 4096,
    ],
)
def test_nothing_else_can_be_asked_for(control: Control, request_: str) -> None:
    hosts, addresses = Path("/etc/hosts").read_text(), host_addresses()
    with pytest.raises(ControlError):
        control.request(request_)
    assert Path("/etc/hosts").read_text() == hosts
    assert host_addresses() == addresses
    assert answers("192.0.3.2")


def test_a_tunnel_to_the_far_end_that_starts_anew_and_moves(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    control: Control,
    stage: Stage,
) -> None:
    inside = namespace()
    conf = stage.conf(0, stage.moving.endpoint_v4)

    def reaches_all_of_it() -> None:
        for address in (stage.far.ipv4, stage.far.ipv6):
            inside.check("ping", "-n", "-c1", "-W10", address)
            iperf3(inside, address, "--connect-timeout=9000", "--bytes=1K")
            echo = (address, str(stage.far.echo_port))
            assert inside.check("busybox", "nc", "-w5", *echo, input="echo\n") == "echo\n"

    path = client.create(inside, conf)
    reaches_all_of_it()
    client.close_tunnel(path)

    control.far_stop()
    control.far_start()
    path = client.create(inside, conf)
    reaches_all_of_it()

    # The far end speaks from its new address first: nobody has told this end.
    stream = inside.popen(
        "iperf3", "--reverse", "--time=3", f"--client={stage.far.ipv4}", stdout=subprocess.PIPE
    )
    received = client.peers(path)[stage.far.public_key]["rx_bytes"]
    wait_for(
        lambda: client.peers(path)[stage.far.public_key]["rx_bytes"] > received + 100_000,
        "the stream flows",
    )
    control.far_move("192.0.3.7")
    wait_for(
        lambda: client.peers(path)[stage.far.public_key]["endpoint"] == "192.0.3.7:51820",
        "the endpoint follows",
        timeout=2,
    )
    report, _ = stream.communicate(timeout=30)
    assert stream.returncode == 0, report
    reaches_all_of_it()
