"""As users have it: installed by `wg4netnsctl setup`, run by a real `systemd --user`."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.bus import MANAGER, NAME, ROOT, Bus, Client, busctl
from support.buses import ON_BOTH
from support.installed import HOME, INSTALLED, assert_nothing_left, files, main_pid
from support.manager import TEMPLATE, UNIT, UserManager, ctl
from support.namespaces import MakeNamespace
from support.processes import of_program, wait_for
from support.stage import Stage

pytestmark = [pytest.mark.long, pytest.mark.distribution]

MANUAL = HOME / ".local/share/man"


def test_setup_installs_the_unit_and_the_activation_file(user_manager: UserManager) -> None:
    assert files() == {}
    ctl("setup")
    first = files()
    assert set(first) == {UNIT, TEMPLATE, f"{NAME}.service"}
    pages = {page.name for page in MANUAL.rglob("*.[15]")}
    assert pages == {page.name for page in Path("docs").glob("*.[15]")} != set()
    assert "/usr/bin/" not in "".join(first.values())  # but this installation's
    assert user_manager.property(UNIT, "LoadState") == "loaded"
    ctl("setup")
    assert files() == first
    ctl("setup", "--remove")
    assert files() == {}
    assert list(MANUAL.rglob("*.[15]")) == []
    assert user_manager.property(UNIT, "LoadState") == "not-found"
    ctl("setup", "--remove")


@ON_BOTH
def test_setup_starts_a_bus_that_was_installed_after_the_login(user_manager: UserManager) -> None:
    user_manager.systemctl("stop", "dbus.socket", "dbus.service")
    assert "started the session bus\n" in ctl("setup")
    with Client(user_manager.address) as client:
        assert client.tunnels() == []
    user_manager.systemctl("stop", UNIT)
    ctl("setup", "--remove")


def test_setup_of_another_version_has_it_take_over(
    installed: UserManager, namespace: MakeNamespace, stage: Stage
) -> None:
    with Client(installed.address) as client:
        path = client.create(namespace(), stage.conf(0))
        daemon, engine = main_pid(installed), client.get(path, "EnginePID")
        assert f"restarted {UNIT}; its tunnels go on\n" in ctl("setup")
        assert main_pid(installed) != daemon
        assert client.get(path, "EnginePID") == engine
        client.close_tunnel(path)


@pytest.mark.parametrize("name", [UNIT, TEMPLATE])
def test_the_unit_is_what_systemd_accepts(installed: UserManager, name: str) -> None:
    unit = INSTALLED[0] / name
    command = ["systemd-analyze", "--user", "verify", "--man=no", str(unit)]
    verified = subprocess.run(command, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


@ON_BOTH
def test_the_first_call_starts_it(installed: UserManager) -> None:
    assert installed.property(UNIT, "ActiveState") == "inactive"
    called = busctl(installed.address, "call", NAME, ROOT, MANAGER, "ListTunnels")
    assert called == {"type": "a(sos)", "data": [[]]}
    # The answer may come before systemd has taken READY=1.
    wait_for(lambda: installed.property(UNIT, "ActiveState") == "active", "it is active")
    described = busctl(installed.address, "call", NAME, ROOT, MANAGER, "Describe")
    json.loads(described["data"][0])


def test_a_bus_without_systemd_activates_it_too(installed: UserManager, bus: Bus) -> None:
    shutil.copy(INSTALLED[1] / f"{NAME}.service", bus.directory / "dbus-1/services")
    with Client(bus.address) as client:
        client.bus("ReloadConfig")
        assert client.tunnels() == []
        pid = client.bus("GetConnectionUnixProcessID", "s", NAME)
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "wg4netnsd ends")


@ON_BOTH
def test_start_and_stop_by_systemctl(installed: UserManager) -> None:
    installed.systemctl("start", UNIT)
    with Client(installed.address) as client:
        # Type=notify: when `start` returns, the name is owned.
        assert client.has_owner()
        installed.systemctl("stop", UNIT)
        wait_for(lambda: not client.has_owner(), "the name is free")
    assert installed.property(UNIT, "Result") == "success"


def test_stop_leaves_no_process_interface_or_file(
    installed: UserManager, namespace: MakeNamespace, stage: Stage
) -> None:
    spaces = [namespace(), namespace(nested=True)]
    with Client(installed.address) as client:
        for number, inside in enumerate(spaces):
            client.create(inside, stage.conf(number))
            inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        assert len(of_program("wireguard-go")) >= 2  # and one that waits for a tunnel
        assert (installed.runtime / "wg4netnsd").is_dir()
        installed.systemctl("stop", UNIT)
    assert_nothing_left(installed)
    for inside in spaces:
        assert set(inside.links()) == {"lo"}
    assert installed.property(UNIT, "Result") == "success"


def test_scripts_make_a_tunnel_by_paths(
    installed: UserManager, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    inside = namespace()
    conf = tmp_path / "wg.conf"
    conf.touch(mode=0o600)
    conf.write_text(stage.conf(0))
    create = ["call", NAME, ROOT, MANAGER, "CreateTunnelFromPaths", "ssa{sv}"]
    (path,) = busctl(installed.address, *create, inside.path, str(conf), "0")["data"]
    assert path.endswith(f"/ns{inside.id[1]}")
    inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv6)
    busctl(installed.address, "call", NAME, path, "org.wg4netns1.Tunnel", "Close")
    assert set(inside.links()) == {"lo"}


@ON_BOTH
def test_a_crash_is_mended_by_systemd(installed: UserManager) -> None:
    installed.systemctl("start", UNIT)
    first = installed.property(UNIT, "MainPID")
    installed.systemctl("kill", "--signal=SIGKILL", UNIT)
    wait_for(
        lambda: (
            installed.property(UNIT, "MainPID") not in ("0", first)
            and installed.property(UNIT, "ActiveState") == "active"
        ),
        "systemd starts it again",
        20,
    )
    assert busctl(installed.address, "call", NAME, ROOT, MANAGER, "ListTunnels")["data"] == [[]]
