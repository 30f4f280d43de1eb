"""The recipes of docs/containers.md, by their very text.

Each of them runs `ip link` behind the tunnel. The `ip` that they find here also tells which name
server there is, and speaks to the far end.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Bus
from support.daemon import Daemon
from support.journal import Journal
from support.processes import wait_for
from support.recipes import ANNOTATION, Host, host_daemon, recipes
from support.stage import Stage

pytestmark = pytest.mark.distribution

DNS, HOST, NONE = "198.51.100.53", "127.0.0.1", ""

NAME_SERVERS = {
    "Podman, with a hook": [DNS, DNS],
    "Podman, by hand": [NONE],
    "A pod": [DNS],
    "Rootlesskit": [DNS],
    "Bubblewrap": [DNS],
    "Bubblewrap, held back": [HOST],
    "Unshare": [DNS, HOST],
}
"""Which each `ip link` of a recipe finds."""


@pytest.fixture(scope="module")
def running_daemon(bus: Bus, directory: Path) -> Iterator[Daemon]:
    with host_daemon(bus, directory) as started:
        yield started


@pytest.fixture(scope="module")
def host(directory: Path, stage: Stage) -> Iterator[Host]:
    made = Host(directory, stage.conf(DNS=DNS))
    yield made
    made.close()


def test_each_recipe_is_tested() -> None:
    assert {heading for heading, commands in recipes().items() if commands} == set(NAME_SERVERS)


@pytest.mark.parametrize("heading", NAME_SERVERS)
def test_a_recipe(daemon: Daemon, host: Host, heading: str) -> None:
    """In there are lo and wg0, the far end answers, and at the end all of it is gone."""
    blocks = recipes()[heading]
    printed = ""
    # Each of these has a namespace of its own, whose end the kernel tells a moment later.
    for commands in blocks if heading == "Unshare" else ["".join(blocks)]:
        printed += host.check(commands)
        wait_for(lambda: daemon.client.tunnels() == [], "the tunnel has ended")
    seen = re.findall(r"^seen: (.*)$", printed, re.M)
    assert seen == [f"lo wg0 |{server}|knock" for server in NAME_SERVERS[heading]]


def test_a_container_that_the_hook_refuses_does_not_start(daemon: Daemon, host: Host) -> None:
    set_up, *_ = recipes()["Podman, with a hook"]
    host.check(set_up)
    start = f"podman run --rm --network none --annotation {ANNOTATION}={{}} busybox echo {{}}"
    assert host.check(start.format("office", "started")) == "started\n"

    journal = Journal()
    refused = host.run(start.format("missing", "started"))
    assert refused.returncode != 0
    assert refused.stdout == ""
    wait_for(
        lambda: "missing.conf" in "".join(journal.messages(SYSLOG_IDENTIFIER="podman-hook")),
        "the journal says why",
    )


def test_an_identity_is_in_one_container_only(daemon: Daemon, host: Host) -> None:
    set_up, start, end = recipes()["Podman, with a hook"]
    host.check(set_up + start)
    assert host.run(start.replace("--name web", "--name another")).returncode != 0
    shared = "podman run --rm --network container:web busybox ip link"
    assert host.check(shared).startswith("seen: lo wg0 ")
    host.check(f"podman rm another\n{end}")


def test_a_reload_reaches_a_container_and_down_cuts_it_off(
    daemon: Daemon, host: Host, stage: Stage
) -> None:
    set_up, start, _ = recipes()["Podman, with a hook"]
    (host.home / "other.conf").write_text(stage.conf(DNS="198.51.100.54"))
    host.check(set_up + start)
    look = "podman exec web ip link"
    assert host.check(f"wg4netnsctl reload office ~/other.conf; {look}") == (
        "seen: lo wg0 |198.51.100.54|knock\n"
    )
    assert host.check(f"wg4netnsctl down office; {look}").startswith("seen: lo |")
    host.check("podman rm --force --time 0 web")


def test_the_hook_follows_no_link_of_the_image(daemon: Daemon, host: Host) -> None:
    """Where it makes the mount, that would lead to the host's files."""
    set_up, *_ = recipes()["Podman, with a hook"]
    host.check(set_up)
    host.check(
        """podman run --name link --network none busybox ln -s "$HOME/made" /etc/resolv.conf
        podman commit --quiet link linked
        podman rm link"""
    )
    start = f"podman run --rm --network none --annotation {ANNOTATION}=office linked true"
    assert host.run(start).returncode != 0
    assert not (host.home / "made").exists()


def test_you_may_enter_what_podman_made(daemon: Daemon, host: Host) -> None:
    *start, end = recipes()["Podman, by hand"]
    enter = "wg4netnsctl exec --trust-root office -- sh -s link <~/bin/ip\n"
    printed = host.check("".join([*start, enter, end]))
    _, from_outside = re.findall(r"^seen: (.*)$", printed, re.M)
    assert from_outside == f"lo wg0 |{DNS}|knock"
