"""The stage itself, without the daemon: a test that fails here makes all others worthless."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bus import Bus, Client, busctl
from support.namespaces import Namespace
from support.stage import Stage, keys, preshared_key


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


@pytest.mark.parametrize("host", ["far-v4.test", "far-v6.test", "192.0.2.2", "2001:db8::2"])
def test_the_far_end_is_reached_from_the_host(stage: Stage, host: str) -> None:
    subprocess.run(["ping", "-c1", "-W5", host], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("nested", [False, True])
def test_a_namespace_starts_with_nothing_but_lo(
    namespace: Callable[..., Namespace], nested: bool
) -> None:
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
