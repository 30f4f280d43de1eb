"""Tunnels at login and programs in them: `wg4netns@.service` and the units in docs/session.md."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import processes
from support.bus import Client, DBusError
from support.buses import ON_BOTH
from support.installed import HOME, crash, wait_successor
from support.journal import Journal
from support.manager import UNIT, UserManager, ctl, installed, user_manager
from support.processes import is_alive, of_program, wait_for
from support.stage import Stage
from support.transits import conf_through

pytestmark = [pytest.mark.long, pytest.mark.distribution]

CONFIGURATIONS = HOME / ".config/wg4netnsd"
UNITS = HOME / ".config/systemd/user"
DOCUMENTED = Path("docs/session.md")
OURS = HOME / ".local/bin/wg4netnsctl"
"""The path where scripts/install puts it, which the units in the documentation use."""
FOR_EVER = "sleep infinity"


class Session:
    """A user's actions on the units, which are named as for `systemctl`."""

    def __init__(self, manager: UserManager) -> None:
        self.manager = manager
        self.client = Client(manager.address)
        self.systemctl = manager.systemctl
        self.journal = Journal()

    def connect_anew(self) -> None:
        self.client.close()
        self.client = Client(self.manager.address)

    def configure(self, name: str, conf: str) -> Path:
        path = CONFIGURATIONS / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text(conf)
        return path

    def place(self, path: str, content: str) -> None:
        """Write a unit of the user, or a file that belongs to one."""
        (HOME / path).parent.mkdir(parents=True, exist_ok=True)
        (HOME / path).write_text(content)
        self.systemctl("daemon-reload")

    def state(self, unit: str) -> str:
        return self.manager.property(unit, "ActiveState")

    def result(self, unit: str) -> tuple[str, str]:
        return self.state(unit), self.manager.property(unit, "Result")

    def wait_state(self, unit: str, state: str) -> None:
        wait_for(lambda: self.state(unit) == state, f"{unit} is {state}")

    def main_pid(self, unit: str) -> int:
        return int(self.manager.property(unit, "MainPID"))

    def when(self, unit: str, event: str) -> int:
        """A timestamp in microseconds, such as ActiveEnterTimestampMonotonic=."""
        return int(self.manager.property(unit, f"{event}TimestampMonotonic"))

    def wait_told(self, unit: str, words: str) -> None:
        """Wait until the journal has a line from wg4netnsctl with these words.

        journald reads a unit's stderr later than the unit's state changes. It also cannot tell the
        unit of a process that exited right after its first line: look for that line in any unit.
        """
        wait_for(lambda: any(words in line for line in self.told(unit)), f"the journal has {words}")

    def told(self, unit: str = "") -> list[str]:
        """The journal's lines from wg4netnsctl so far, of one unit or of all."""
        of_unit = [f"--user-unit={unit}"] if unit else []
        return self.journal.messages(*of_unit, SYSLOG_IDENTIFIER="wg4netnsctl")

    def tunnel(self, name: str) -> str:
        """The tunnel's path; empty if there is none."""
        return {each: path for each, path, _ in self.client.tunnels()}.get(name, "")

    def is_in(self, pid: int, name: str) -> bool:
        """Is the process in the tunnel's network namespace?"""
        return netns_of(pid) == tuple(self.client.get(self.tunnel(name), "NetnsId"))

    def wait_in(self, unit: str, name: str) -> int:
        """Wait until the unit's process is in the tunnel's network namespace; return its PID."""
        wait_for(lambda: self.is_in(self.main_pid(unit), name), f"{unit} is in '{name}'")
        return self.main_pid(unit)

    def close(self) -> None:
        """Stop and remove everything that a test started or wrote."""
        self.systemctl("stop", "wg4netns@*", "torrents*", "work-*")
        wait_for(lambda: not self.client.tunnels(), "all tunnels have ended")
        for directory in (CONFIGURATIONS, UNITS):
            shutil.rmtree(directory, ignore_errors=True)
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed")
        self.client.close()


def netns_of(pid: int) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.stat(f"/proc/{pid}/ns/net")
        return status.st_dev, status.st_ino
    return None


@pytest.fixture(scope="module")
def manager(stage: Stage, bus_program: str) -> Iterator[UserManager]:
    OURS.parent.mkdir(parents=True, exist_ok=True)
    OURS.symlink_to(Path(sys.prefix) / "bin/wg4netnsctl")
    with user_manager(bus_program) as started, installed(started):
        yield started
    OURS.unlink()


@pytest.fixture
def session(manager: UserManager) -> Iterator[Session]:
    CONFIGURATIONS.mkdir(parents=True)
    mine = Session(manager)
    yield mine
    mine.close()


@pytest.fixture
def work(session: Session, stage: Stage) -> Session:
    """A session with the tunnel 'work', which is not up yet."""
    session.configure("work", stage.conf(0))
    return session


def documented(path: str, program: str = "", document: Path = DOCUMENTED) -> tuple[str, str]:
    """The path and text of a unit in the documentation, with another program for `exec`."""
    blocks = re.findall(r"```ini\n# ~/(\S+)\n(.*?)```", document.read_text(), re.DOTALL)
    text = dict(blocks)[path]
    return path, re.sub(r" -- .*", f" -- {program}", text) if program else text


def torrents(program: str = FOR_EVER) -> tuple[str, str]:
    return documented(".config/systemd/user/torrents.service", program)


# ---------------------------------------------------------------- a tunnel is a unit


# All characters that a name may have: systemd must not read `-` as `/`, nor `@` as a template.
@pytest.mark.parametrize("name", ["work", "2-home_to.work@example.org"])
def test_it_is_active_while_the_tunnel_is_up(session: Session, stage: Stage, name: str) -> None:
    unit = f"wg4netns@{name}.service"
    session.configure(name, stage.conf(0))
    session.systemctl("start", unit)
    path = session.tunnel(name)
    assert session.client.get(path, "State") == "up"
    assert "up: wg0 has 198.51.100.11/24" in session.manager.property(unit, "StatusText")
    ctl("exec", name, "--", "ping", "-n", "-c1", "-W10", stage.far.ipv4)
    engine = session.client.get(path, "EnginePID")
    inside = session.main_pid(unit)
    session.systemctl("stop", unit)
    assert session.result(unit) == ("inactive", "success")
    assert session.tunnel(name) == ""
    assert not is_alive(engine)
    assert not is_alive(inside)


def test_it_is_active_only_then(session: Session, stage: Stage) -> None:
    """The daemon is still reading: nothing has been written into the pipe."""
    configuration = CONFIGURATIONS / "work.conf"
    os.mkfifo(configuration, 0o600)
    session.systemctl("start", "--no-block", "wg4netns@work")
    with configuration.open("w") as pipe:
        wait_for(lambda: session.main_pid("wg4netns@work"), "it is being started")
        assert session.state("wg4netns@work") == "activating"
        pipe.write(stage.conf(0))
    session.wait_state("wg4netns@work", "active")
    assert session.tunnel("work")


def test_it_can_be_stopped_before_that(session: Session) -> None:
    configuration = CONFIGURATIONS / "work.conf"
    os.mkfifo(configuration, 0o600)
    session.systemctl("start", "--no-block", "wg4netns@work")
    with configuration.open("w"):
        session.systemctl("stop", "wg4netns@work")
    assert session.result("wg4netns@work") == ("inactive", "success")
    assert session.client.tunnels() == []


def test_a_wrong_configuration_is_told_and_not_tried_again(work: Session, stage: Stage) -> None:
    path = work.configure("work", stage.conf(0, MTU="12"))
    work.systemctl("start", "wg4netns@work", check=False)
    assert work.result("wg4netns@work") == ("failed", "exit-code")
    work.wait_told("", "line 4: MTU: ")
    assert "MTU" in work.manager.property("wg4netns@work", "StatusText")
    assert not [line for line in work.told() if stage.clients[0].private_key in line]
    path.unlink()
    work.systemctl("start", "wg4netns@work", check=False)
    assert work.result("wg4netns@work") == ("failed", "exit-code")
    work.wait_told("", f"{path}: No such file or directory")
    assert work.manager.property("wg4netns@work", "NRestarts") == "0"


def test_a_name_that_no_tunnel_can_have_is_not_tried_again(session: Session) -> None:
    session.systemctl("start", "--", "wg4netns@-x", check=False)
    assert session.result("wg4netns@-x") == ("failed", "exit-code")
    session.wait_told("", "'-x' is not a tunnel name")


def test_a_reload_applies_the_file(work: Session, stage: Stage) -> None:
    work.systemctl("start", "wg4netns@work")
    path, pid = work.tunnel("work"), work.main_pid("wg4netns@work")
    work.configure("work", stage.conf(0, MTU="1300"))
    work.systemctl("reload", "wg4netns@work")
    assert work.client.get(path, "Mtu") == 1300
    work.configure("work", stage.conf(0, MTU="12"))
    work.systemctl("reload", "wg4netns@work", check=False)
    work.wait_told("", "line 4: MTU: ")
    assert work.client.get(path, "Mtu") == 1300
    assert (work.state("wg4netns@work"), work.main_pid("wg4netns@work")) == ("active", pid)


def test_enabled_it_comes_with_the_session(work: Session) -> None:
    work.systemctl("enable", "wg4netns@work")
    assert "wg4netns@work.service" in work.manager.property("default.target", "Wants").split()
    work.systemctl("start", "default.target")
    work.wait_state("wg4netns@work", "active")


# ---------------------------------------------------------------- programs bound to it


def test_a_bound_program_comes_and_goes_with_the_tunnel(work: Session) -> None:
    work.place(*torrents())
    work.systemctl("enable", "torrents")
    work.systemctl("start", "wg4netns@work")
    work.wait_state("torrents", "active")
    work.wait_in("torrents", "work")
    started = work.when("torrents", "ExecMainStart")
    assert started >= work.when("wg4netns@work", "ActiveEnter") > 0
    work.systemctl("stop", "wg4netns@work")
    assert work.result("torrents") == ("inactive", "success")
    stopped = work.when("torrents", "InactiveEnter")
    assert stopped <= work.when("wg4netns@work", "ActiveExit")
    work.systemctl("start", "wg4netns@work")
    work.wait_state("torrents", "active")


def test_it_brings_the_tunnel_up_and_is_restarted_with_it(work: Session) -> None:
    work.place(*torrents())
    work.systemctl("start", "torrents")
    program = work.wait_in("torrents", "work")
    work.systemctl("restart", "wg4netns@work")
    assert not is_alive(program)
    work.wait_in("torrents", "work")


def test_it_is_the_units_own_process(work: Session) -> None:
    """So systemd accepts its READY=1, for which it waits."""
    path, text = torrents("sh -c 'systemd-notify --ready && exec sleep infinity'")
    work.place(path, text.replace("[Service]", "[Service]\nType=notify\nNotifyAccess=all"))
    work.systemctl("start", "torrents")
    pid = work.main_pid("torrents")
    wait_for(lambda: processes.program(pid) == "sleep", "exec has become the command")


def test_down_ends_all_of_it(work: Session) -> None:
    work.place(*torrents())
    work.systemctl("start", "torrents")
    work.wait_in("torrents", "work")
    ctl("down", "work")
    work.wait_state("wg4netns@work", "inactive")
    work.wait_state("torrents", "inactive")
    assert work.result("wg4netns@work") == ("inactive", "success")
    work.wait_told("wg4netns@work", "work has ended: closed by request")
    up, _ = work.told("wg4netns@work")
    assert up.startswith("work is up: wg0 has 198.51.100.11/24")


def comes_back(session: Session, unit: str, before: int) -> None:
    wait_for(lambda: session.main_pid(unit) not in (0, before), f"{unit} comes back", 20)
    session.wait_state(unit, "active")


def test_after_a_failure_all_of_it_comes_back(work: Session) -> None:
    work.place(*torrents())
    work.systemctl("enable", "torrents")
    work.systemctl("start", "wg4netns@work")
    program, main = work.wait_in("torrents", "work"), work.main_pid("wg4netns@work")
    engine = work.client.get(work.tunnel("work"), "EnginePID")
    os.kill(main, signal.SIGKILL)
    wait_for(lambda: not is_alive(program), "the program is stopped")
    wait_for(lambda: not is_alive(engine), "the tunnel ends")
    comes_back(work, "wg4netns@work", main)
    comes_back(work, "torrents", program)
    work.wait_in("torrents", "work")


def test_a_tunnel_that_is_given_up_is_a_failure(work: Session) -> None:
    work.systemctl("start", "wg4netns@work")
    main, path = work.main_pid("wg4netns@work"), work.tunnel("work")

    def kill_and_see() -> bool:
        with suppress(DBusError, ProcessLookupError):  # it has ended, or is ending
            if pid := work.client.get(path, "EnginePID"):
                os.kill(pid, signal.SIGKILL)
        return work.main_pid("wg4netns@work") != main

    wait_for(kill_and_see, "it is given up", 40)
    comes_back(work, "wg4netns@work", main)
    work.wait_told("wg4netns@work", "work has failed: ")


# ---------------------------------------------------------------- the daemon and the bus


@ON_BOTH
def test_they_live_through_a_crash_and_restarts(work: Session) -> None:
    """The daemon and the bus are restarted."""
    work.place(*torrents())
    work.systemctl("start", "torrents")
    engine = work.client.get(work.tunnel("work"), "EnginePID")
    before = work.main_pid("wg4netns@work"), work.wait_in("torrents", "work")
    crash(work.manager)
    work.systemctl("restart", UNIT)
    daemon = work.main_pid(UNIT)
    work.systemctl("restart", "dbus.service")
    wait_successor(work.manager, daemon)
    work.connect_anew()
    assert work.client.get(work.tunnel("work"), "EnginePID") == engine
    assert (work.main_pid("wg4netns@work"), work.main_pid("torrents")) == before
    # Signals of the new daemon, on the new bus, are received.
    ctl("down", "work")
    work.wait_state("wg4netns@work", "inactive")
    assert work.result("wg4netns@work") == ("inactive", "success")


def test_they_end_with_the_daemons_stop(work: Session) -> None:
    work.place(*torrents())
    work.systemctl("start", "torrents")
    work.wait_in("torrents", "work")
    work.systemctl("stop", UNIT)
    work.wait_state("wg4netns@work", "inactive")
    work.wait_state("torrents", "inactive")
    work.wait_told("wg4netns@work", "work has ended: the daemon is ending")
    assert work.state(UNIT) == "inactive"


@ON_BOTH
def test_at_logout_each_ends_while_it_is_listened_to(work: Session) -> None:
    """All units of the session stop; only After= makes one wait for another."""
    work.place(*torrents())
    work.systemctl("start", "torrents")
    work.wait_in("torrents", "work")
    work.systemctl("stop", "torrents", "wg4netns@work", UNIT, "dbus.service")
    assert work.result("wg4netns@work") == ("inactive", "success")
    work.connect_anew()
    told = work.journal.messages(f"--user-unit={UNIT}", TUNNEL="work")
    assert "tunnel work: stopping → closed: closed by request" in told


def test_setup_removes_all_of_it(work: Session) -> None:
    work.systemctl("enable", "--now", "wg4netns@work")
    enabled = UNITS / "default.target.wants/wg4netns@work.service"
    assert enabled.is_symlink()
    removed = ctl("setup", "--remove")
    assert "stopped wg4netns@work.service\n" in removed
    assert f"removed {enabled}\n" in removed
    assert not enabled.is_symlink()
    assert work.manager.property("wg4netns@work", "LoadState") == "not-found"
    assert of_program("wireguard-go") == set()
    ctl("setup")


# ---------------------------------------------------------------- more of the documentation


def test_a_browser_has_a_directory_for_its_profile(work: Session) -> None:
    path, text = documented(".config/systemd/user/work-browser.service")
    browser = re.sub("firefox .*--profile (.*)", r"sh -c 'cd \1 && exec sleep infinity'", text)
    work.place(path, browser)
    work.systemctl("start", "work-browser")
    pid = work.main_pid("work-browser")
    wait_for(lambda: processes.program(pid) == "sleep", "it runs")
    assert os.readlink(f"/proc/{pid}/cwd").endswith("/work-browser")
    assert work.is_in(pid, "work")
    _, entry = documented(".local/share/applications/work-browser.desktop")
    assert "Exec=systemctl --user start work-browser.service\n" in entry


def test_a_tmux_server_is_inside_with_its_shells(work: Session) -> None:
    def tmux(*arguments: str) -> str:
        return subprocess.check_output(["tmux", "-L", "work", *arguments], text=True)

    work.place(*documented(".config/systemd/user/work-tmux.service"))
    work.systemctl("start", "work-tmux")
    tmux("new-window", "-d")
    pids = tmux("list-panes", "-s", "-F", "#{pane_pid}").split()
    assert len(pids) == 2
    assert all(work.is_in(int(pid), "work") for pid in pids)
    work.systemctl("stop", "wg4netns@work")
    assert not any(is_alive(int(pid)) for pid in pids)


def test_a_drop_in_gives_up_other_options(work: Session, stage: Stage) -> None:
    work.place(*documented(".config/systemd/user/wg4netns@work.service.d/override.conf"))
    work.configure("work", stage.conf(0, PostUp="iptables -A OUTPUT -j ACCEPT"))
    work.systemctl("start", "wg4netns@work")
    (peer,) = work.client.peers(work.tunnel("work")).values()
    assert peer["last_handshake_usec"] > 0
    work.configure("work", stage.conf(0, MTU="1300", PreDown="true"))
    work.systemctl("reload", "wg4netns@work")
    assert work.client.get(work.tunnel("work"), "Mtu") == 1300


# `run` also makes a PID namespace.
@pytest.mark.parametrize("inside", [["exec", "work"], ["run", "--name=work", "work"]])
def test_systemd_run_leads_outside(work: Session, inside: list[str]) -> None:
    if inside[0] == "exec":
        work.systemctl("start", "wg4netns@work")
    (outside,) = re.findall("^(systemd-run .*--pipe .*?)curl", DOCUMENTED.read_text(), re.MULTILINE)
    netns = "readlink /proc/self/ns/net"
    told = ctl(*inside, "--", "sh", "-c", f"{netns}; {outside}{netns}; {outside}false || echo $?")
    here, there, status = told.split()
    assert here != there == os.readlink("/proc/self/ns/net")
    assert status == "1"


# ---------------------------------------------------------------- a tunnel through a tunnel


def test_a_session_of_two_hops(session: Session, stage: Stage) -> None:
    """The drop-in of docs/transit.md: systemd brings the outer tunnel up first, and down last."""
    session.configure("entry", stage.conf(0))
    session.configure("exit", conf_through(stage, 1))
    path = ".config/systemd/user/wg4netns@exit.service.d/via.conf"
    session.place(*documented(path, document=Path("docs/transit.md")))
    for _ in range(2):
        session.systemctl("start", "wg4netns@exit")
        assert session.state("wg4netns@entry") == "active"
        assert session.client.get(session.tunnel("exit"), "Transit") == ("tunnel", "entry")
        ctl("exec", "exit", "--", "ping", "-n", "-c1", "-W10", stage.far.ipv4)
        session.systemctl("stop", "wg4netns@entry")
        session.wait_state("wg4netns@exit", "inactive")
        assert session.manager.property("wg4netns@exit", "Result") == "success"
        gone = [session.when(f"wg4netns@{name}", "ActiveExit") for name in ("exit", "entry")]
        assert gone == sorted(gone)
        assert session.client.tunnels() == []
    session.systemctl("start", "wg4netns@exit")
    ctl("down", "entry")
    session.wait_state("wg4netns@exit", "inactive")
    assert session.client.tunnels() == []
