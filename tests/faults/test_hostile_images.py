"""An image, or a container made of it, attacks by way of podman's hook of docs/containers.md."""

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

FLAGS = {"ro", "nosuid", "nodev", "noexec"}


@pytest.fixture(scope="module")
def running_daemon(bus: Bus, directory: Path) -> Iterator[Daemon]:
    with host_daemon(bus, directory) as started:
        yield started


@pytest.fixture(scope="module")
def host(directory: Path, stage: Stage) -> Iterator[Host]:
    made = Host(directory, stage.conf(DNS="198.51.100.53"))
    made.check(recipes()["Podman, with a hook"][0])
    yield made
    made.close()


@pytest.mark.parametrize("value", ["office", "--help"])
def test_an_image_gets_no_tunnel(daemon: Daemon, host: Host, value: str) -> None:
    """Its annotations become the container's in podman 4, so it must not know the right one."""
    host.check(
        f"""echo FROM busybox >Containerfile
        podman build --quiet --format oci --annotation org.wg4netns={value} \\
            --annotation org.wg4netns.0000000000000000={value} --tag hostile ."""
    )
    assert host.check("podman run --rm --network none hostile ip link") == "seen: lo ||\n"
    assert daemon.client.tunnels() == []


@pytest.mark.parametrize("value", ["--help", "--name=x", "../office", "~/office", "office.conf"])
def test_the_annotation_names_a_configuration(daemon: Daemon, host: Host, value: str) -> None:
    journal = Journal()
    start = f"podman run --rm --network none --annotation {ANNOTATION}='{value}' busybox true"
    assert host.run(start).returncode != 0
    wait_for(
        lambda: "expected NAME" in "".join(journal.messages(SYSLOG_IDENTIFIER="podman-hook")),
        "the journal says why",
    )


def test_a_hook_of_an_earlier_version_refuses(daemon: Daemon, host: Host) -> None:
    """It was set up without a name for the annotation, so any image could have it."""
    hook = next(iter(re.findall(r"/\S*podman-hook", host.check(FIND))))
    done = host.run(f"echo '{{}}' | sh '{hook}'")
    assert done.returncode == 1
    assert "docs/containers.md" in done.stderr


FIND = "cat ~/.config/containers/oci/hooks.d/wg4netns.json"


def test_a_container_cannot_write_to_the_daemons_file(daemon: Daemon, host: Host) -> None:
    _, start, _ = recipes()["Podman, with a hook"]
    host.check(start)
    (_, path, _), *_ = daemon.client.tunnels()
    file = Path(daemon.client.get(path, "ResolvConf"))
    before = file.read_text()
    seen = host.check("podman exec web grep /etc/resolv.conf /proc/self/mountinfo")
    assert set(seen.split()[5].split(",")) >= FLAGS
    for attack in ("echo nameserver 192.0.2.66 >", "head -c 1000000 /dev/zero >>", "chmod 0 "):
        done = host.run(f"podman exec web sh -c '{attack} /etc/resolv.conf'")
        assert done.returncode != 0
        assert "Read-only" in done.stderr
    assert file.read_text() == before
    host.check("podman rm --force --time 0 web")
