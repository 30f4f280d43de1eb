"""ssh in `wg4netnsctl run` and `exec`, where root's files are nobody's.

On the stage, /etc/ssh/ssh_config.d has a file of root's, and a link to another, as Debian's systemd
has one; /run/ssh has more (tests/stage/world). `ssh -G` tells what it would do, having read them.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.ctl import Ctl, ctl_with_office
from support.daemon import Daemon
from support.stage import Stage

pytestmark = pytest.mark.distribution

OWN = Path.home() / ".ssh/config"


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        yield ctl


@pytest.fixture
def own() -> Iterator[Path]:
    """The path of the user's configuration, which does not exist yet."""
    OWN.parent.mkdir(mode=0o700)
    yield OWN
    OWN.unlink()
    OWN.parent.rmdir()


@pytest.mark.parametrize("host", ["file.test", "link.test"])
def test_it_reads_what_it_reads_outside(ctl: Ctl, host: str) -> None:
    command = ["ssh", "-G", host]
    outside = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "\nport 4242\n" in outside
    assert ctl.check("run", "office", "--", *command) == outside
    ctl.check("up", "office")
    assert ctl.check("exec", "office", "--", *command) == outside
    ctl.check("down", "office")


def test_the_users_own_may_be_of_roots(ctl: Ctl, own: Path) -> None:
    """home-manager makes it a link into Nix's store."""
    own.symlink_to("/run/ssh/config")
    assert "\nport 4242\n" in ctl.check("run", "office", "--", "ssh", "-G", "config.test")


def test_what_is_refused_outside_is_refused_inside(ctl: Ctl, own: Path) -> None:
    own.write_text("Include /run/ssh/of-another-user\n")
    own.chmod(0o600)
    command = ["ssh", "-G", "file.test"]
    outside = subprocess.run(command, capture_output=True, text=True)
    inside = ctl.run("run", "office", "--", *command)
    assert outside.returncode == inside.returncode == 255
    assert "Bad owner or permissions on /run/ssh/of-another-user" in outside.stderr
    assert inside.stderr == outside.stderr


def test_copies_can_only_be_read(ctl: Ctl) -> None:
    path = "/etc/ssh/ssh_config.d/file.conf"
    script = f"stat --format='%U %a' {path} && echo >{path}"
    done = ctl.run("run", "office", "--", "sh", "-c", script)
    assert done.stdout.split() == [Path.home().owner(), "644"]
    assert "Read-only file system" in done.stderr
