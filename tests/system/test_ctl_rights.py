"""What a command may do in its network namespace: ports, capabilities; and what warns of limits."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Bus, Client
from support.ctl import PROGRAM, Ctl, ctl_with_office
from support.daemon import Daemon
from support.stage import Stage

pytestmark = pytest.mark.distribution

CAPABILITIES = "sed -n 's/^Cap\\(Prm\\|Eff\\|Amb\\):\\s*//p' /proc/self/status"
RAW, ADMIN = 1 << 13, 1 << 12  # linux/capability.h

BIND = "import socket; socket.create_server(('', {port})); print('bound')"
PACKETS = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('opened')"


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        yield ctl
        ctl.down_all(client)


@pytest.fixture(params=["run", "exec"])
def within(ctl: Ctl, request: pytest.FixtureRequest) -> list[str]:
    """Runs a command in the tunnel; options come before its last word."""
    if request.param == "exec":
        ctl.check("up", "office")
    return [request.param, "office"]


def python(
    ctl: Ctl, within: list[str], code: str, *options: str
) -> subprocess.CompletedProcess[str]:
    command, name = within
    return ctl.run(command, *options, name, "--", sys.executable, "-c", code)


@pytest.mark.parametrize("port", [1, 80, 1023])
def test_every_port_is_the_users(ctl: Ctl, within: list[str], port: int) -> None:
    assert python(ctl, within, BIND.format(port=port)).stdout == "bound\n"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((), 0),
        (("--cap", "net_raw"), RAW),
        (("--cap=NET_ADMIN",), ADMIN),
        (("--cap", "cap_net_raw,net_admin"), RAW | ADMIN),
        (("--cap", "net_raw", "--cap", "net_admin"), RAW | ADMIN),
    ],
)
def test_it_keeps_the_capabilities_that_it_asks_for(
    ctl: Ctl, within: list[str], options: tuple[str, ...], kept: int
) -> None:
    command, name = within
    twice = ["sh", "-c", 'exec sh -c "$0"', CAPABILITIES]
    printed = ctl.check(command, *options, name, "--", *twice)
    assert [int(each, 16) for each in printed.split()] == [kept] * 3


def test_raw_packets_need_net_raw(ctl: Ctl, within: list[str]) -> None:
    assert "Operation not permitted" in python(ctl, within, PACKETS).stderr
    assert python(ctl, within, PACKETS, "--cap", "net_raw").stdout == "opened\n"


def test_net_admin_is_no_way_out(ctl: Ctl, within: list[str], stage: Stage) -> None:
    """It may take the interface down, and then there is none; nor can it enter the host's."""
    command, name = within
    script = f"""
        ip link set wg0 down
        ip route get {stage.far.ipv4}
        ip link add link wg0 name mine type dummy; ip -o link
        unshare --user --map-root-user nsenter --net=/proc/$PPID/ns/net true
    """
    done = ctl.run(command, "--cap", "net_admin", name, "--", "sh", "-c", script)
    assert "Network is unreachable" in done.stderr
    assert {line.split(": ")[1] for line in done.stdout.splitlines()} <= {"lo", "wg0", "mine"}
    assert done.returncode != 0


@pytest.mark.parametrize("wrong", ["sys_admin", "net_raw,sys_ptrace", "", "net_raw,"])
def test_no_other_capability(ctl: Ctl, wrong: str) -> None:
    done = ctl.run("run", f"--cap={wrong}", "office", "true")
    assert done.returncode == 2
    assert f"'{wrong}': expected net_raw, net_admin or both" in done.stderr


# ---------------------------------------------------------------- warnings


WARNING = "warning: this is inside 'outer', but the new tunnel leaves by the host's network"


@pytest.mark.parametrize(
    ("inner", "warns"),
    [
        ("run --name inner desk -- true", True),
        ("up --name inner desk", True),
        ("run --via outer desk -- true", False),
    ],
)
def test_a_tunnel_inside_a_tunnel(ctl: Ctl, stage: Stage, inner: str, warns: bool) -> None:
    ctl.write("desk", stage.conf(1))
    done = ctl.run("run", "--name=outer", "office", "--", "sh", "-c", f"'{PROGRAM}' {inner}")
    assert done.returncode == 0, done.stderr
    assert (WARNING in done.stderr) is warns, done.stderr
    assert ("'--via outer'" in done.stderr) is warns


def test_no_warning_outside_or_in_another_user_namespace(ctl: Ctl) -> None:
    assert ctl.run("run", "office", "true").stderr == ""
    unshare = ["unshare", "--user", "--map-current-user", PROGRAM, "run", "office", "true"]
    done = subprocess.run(unshare, env=ctl.environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_daemon_of_another_bus(ctl: Ctl, daemon: Daemon, bus: Bus, tmp_path: Path) -> None:
    """Both want the same runtime directory. The bus says no more than 'exited with status 78'."""
    (tmp_path / "bus").mkdir()
    other = Bus(tmp_path / "bus")
    services = other.directory / "dbus-1/services"
    (services / "org.wg4netns1.service").write_text(
        f"[D-BUS Service]\nName=org.wg4netns1\n"
        f"Exec=/usr/bin/env XDG_RUNTIME_DIR={daemon.runtime} {PROGRAM.with_name('wg4netnsd')}\n"
    )
    with Client(other.address) as client:
        client.bus("ReloadConfig")
    ctl.environment["DBUS_SESSION_BUS_ADDRESS"] = other.address
    ctl.environment["XDG_RUNTIME_DIR"] = str(daemon.runtime)
    try:
        done = ctl.run("run", "office", "true")
    finally:
        other.close()
    assert done.returncode == 125
    assert f"another wg4netnsd of yours, process {daemon.process.pid}," in done.stderr
    assert f"'kill {daemon.process.pid}' ends it" in " ".join(done.stderr.split())
