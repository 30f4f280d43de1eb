"""Options of CreateTunnel that are unknown, of the wrong type or impossible."""

from collections.abc import Callable
from contextlib import AbstractContextManager as Opens
from typing import Any

import pytest

from support.bus import Client
from support.configs import Secrets
from support.fds import memfd, opened, pipe
from support.namespaces import MakeNamespace, Namespace
from support.refusals import Refuses, inside_and_config


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
