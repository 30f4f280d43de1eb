"""`wg4netnsctl run`: a command behind a tunnel; nothing of either is left at the end."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.ctl import PROGRAM, Ctl, ctl_with_office
from support.daemon import Daemon
from support.depth import depth
from support.fds import memfd
from support.processes import descendants, is_alive, wait_for
from support.stage import Stage

pytestmark = [pytest.mark.long, pytest.mark.distribution]

ENDING = sorted(
    {
        number
        for number in signal.Signals
        if number < signal.SIGRTMIN
        and signal.getsignal(number) is not None
        and number
        not in {
            signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN,
            signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH,
        }
    }
    | {signal.SIGKILL}
)  # fmt: skip
"""The signals that end a process by default; signal(7)."""

ENDINGS_TRIED = depth(
    [  # from a terminal, on request, a fault with a core dump, a timer, SIGKILL
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGSEGV,
        signal.SIGALRM, signal.SIGKILL,
    ],
    ENDING,
)  # fmt: skip

STAYS = "setsid sleep 1000 & echo $! $(readlink /proc/self/ns/net); exec sleep 1000"
"""A command that leaves a background process, in a session of its own."""


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    before = Path("/proc/self/mountinfo").read_text()
    with ctl_with_office(daemon.address, directory, client, stage.conf(0)) as ctl:
        yield ctl
    assert Path("/proc/self/mountinfo").read_text() == before


# ---------------------------------------------------------------- what the command finds


def test_its_only_way_out_is_the_tunnel(ctl: Ctl, stage: Stage) -> None:
    seen = ctl.check("run", "office", "--", "sh", "-c", "ls /sys/class/net; ip -o link")
    assert {line.split(": ")[1] for line in seen.splitlines() if ": " in line} == {"lo", "wg0"}
    ctl.check("run", "office", "ping", "-c1", "-W5", stage.far.ipv4)
    ctl.check("run", "office", "ping", "-c1", "-W5", stage.far.ipv6)


def test_ping_without_a_privilege(ctl: Ctl, stage: Stage, tmp_path: Path) -> None:
    """ping as on Debian 13: the copy has no file capability."""
    ping = shutil.copyfile("/bin/ping", tmp_path / "ping")
    ping.chmod(0o755)
    ctl.check("run", "office", "--", str(ping), "-c1", "-W5", stage.far.ipv4)
    ctl.check("run", "office", "--", str(ping), "-c1", "-W5", stage.far.ipv6)
    ctl.check("up", "office")
    ctl.check("exec", "office", "--", str(ping), "-c1", "-W5", stage.far.ipv4)
    ctl.check("down", "office")


def test_the_same_user_with_the_same_rights(ctl: Ctl, tmp_path: Path) -> None:
    mine = subprocess.run(["id", "-u", "-n"], capture_output=True, text=True, check=True).stdout
    assert ctl.check("run", "office", "--", "id", "-u", "-n") == mine
    ctl.check("run", "office", "--", "touch", str(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_uid == os.getuid()
    assert (tmp_path / "file").stat().st_gid == os.getgid()
    status = ctl.check("run", "office", "--", "cat", "/proc/self/status")
    assert "CapEff:\t0000000000000000\n" in status
    refused = ctl.run("run", "office", "--", "ip", "link", "set", "wg0", "down")
    assert "Operation not permitted" in refused.stderr


def test_it_is_the_users_command(ctl: Ctl, tmp_path: Path) -> None:
    words = ["a b", "*", "", "--", "-x"]
    said = ctl.check("run", "office", "--", "printf", "[%s]", *words, cwd=tmp_path)
    assert said == "".join(f"[{word}]" for word in words)
    assert ctl.check("run", "office", "pwd", cwd=tmp_path) == f"{tmp_path}\n"
    assert ctl.check("run", "office", "cat", input="what is typed") == "what is typed"


def test_its_environment(ctl: Ctl) -> None:
    ctl.environment["MINE"] = "kept"
    said = ctl.check("run", "--name", "desk", "office", "--", "sh", "-c", "echo $WG4NETNS $MINE")
    assert said == "desk kept\n"


def test_processes_of_its_own(ctl: Ctl) -> None:
    assert ctl.check("run", "office", "--", "sh", "-c", "echo /proc/[0-9]*") == "/proc/1 /proc/2\n"
    shared = ctl.check("run", "--share-pids", "office", "--", "readlink", "/proc/self/ns/pid")
    assert shared.strip() == os.readlink("/proc/self/ns/pid")


def test_orphans_are_collected(ctl: Ctl) -> None:
    script = "(sleep 0.01 &); while ! grep -qs '^1 .*S' /proc/1/stat; do :; done; sleep 0.1; ps -e"
    assert "defunct" not in ctl.check("run", "office", "--", "sh", "-c", script)


def test_two_of_one_name_at_once(ctl: Ctl) -> None:
    """Each runs in its own PID namespace, where PIDs are the same."""
    inner = f"'{PROGRAM}' run office -- sh -c 'echo $WG4NETNS; cat'"
    running = [
        ctl.popen("run", "office", "--", "sh", "-c", inner, stdin=subprocess.PIPE) for _ in range(2)
    ]
    names = {process.stdout.readline() for process in running if process.stdout}
    assert len(names) == 2
    assert all(re.fullmatch(r"office-\d+\n", name) for name in names)
    for process in running:
        process.communicate()
        assert process.returncode == 0


def test_the_directory_one_is_in(ctl: Ctl) -> None:
    listed = ctl.check("run", "office", "--", "sh", "-c", "echo [0-9]*", cwd="/proc")
    assert listed == "1 2\n"


def test_its_environment_is_ours(ctl: Ctl) -> None:
    for key in list(ctl.environment):
        if key.startswith("LC_") or key == "LANG":
            del ctl.environment[key]
    said = ctl.check("run", "office", "--", "env")
    assert set(said.splitlines()) - {f"{k}={v}" for k, v in ctl.environment.items()} == {
        next(line for line in said.splitlines() if line.startswith("WG4NETNS=")),
        "SYSTEMCTL_FORCE_BUS=1",
    }


def test_its_signals_are_ours(ctl: Ctl) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some supervisors do
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    status = ctl.check("run", "office", "--", "cat", "/proc/self/status", preexec_fn=prepare)
    masks = dict(re.findall(r"^(Sig\w+):\s+(\w+)$", status, re.M))
    assert int(masks["SigBlk"], 16) == 1 << signal.SIGUSR1 - 1
    assert int(masks["SigIgn"], 16) == 1 << signal.SIGUSR2 - 1


def test_no_descriptor_of_ours(ctl: Ctl) -> None:
    script = "for fd in /proc/self/fd/*; do echo ${fd##*/}; done"
    for pids in ((), ("--share-pids",)):
        said = ctl.check("run", *pids, "office", "--", "bash", "-c", script)
        assert set(map(int, said.split())) <= {0, 1, 2, 3}  # 3 is the shell's, for /proc


def test_a_configuration_by_path_or_pipe(ctl: Ctl, stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "desk.conf").write_text(stage.conf(0))
    (tmp_path / "desk.conf").chmod(0o600)
    named = ctl.check("run", "desk.conf", "--", "sh", "-c", "echo $WG4NETNS", cwd=tmp_path)
    assert named.startswith("desk-")
    with memfd(stage.conf(0)) as fd:
        ctl.check("run", f"/dev/fd/{fd}", "true", pass_fds=[fd])


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
@pytest.mark.parametrize("pids", [(), ("--share-pids",)], ids=["own pids", "shared pids"])
def test_its_status(ctl: Ctl, pids: tuple[str, ...], script: str, status: int) -> None:
    assert ctl.run("run", *pids, "office", "--", "sh", "-c", script).returncode == status


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["office", "--", "/nowhere/at-all"], 127, ["command not found"]),
        (["office", "--", ""], 127, ["command not found"]),
        (["office", "--", "-x"], 127, ["-x: command not found"]),
        (["."], 2, ["no command"]),
        ([".", "true"], 125, ["neither a file nor a pipe"]),
        (["office", "--", "/etc/passwd"], 126, ["/etc/passwd: Permission denied"]),
        (["nowhere", "--", "true"], 125, ["nowhere.conf: No such file", "'nowhere' is a name"]),
        (["./nowhere.conf", "--", "true"], 125, ["./nowhere.conf: No such file"]),
        (["wrong", "--", "true"], 125, ["wrong.conf: line 3: Address"]),
        (
            ["--timeout=1", "--handshake", "silent", "--", "true"],
            125,
            ["no handshake", "--timeout"],
        ),
        (["--name=a/b", "office", "true"], 2, ["'a/b' is not a tunnel name"]),
        (["office"], 2, ["no command"]),
        (["office", "--handshake", "--", "true"], 2, ["--handshake: options go before CONF"]),
    ],
)
def test_it_does_not_even_begin(
    ctl: Ctl, stage: Stage, arguments: list[str], status: int, words: list[str]
) -> None:
    ctl.write("wrong", stage.conf(0).replace("Address", "Address = nonsense\n#"))
    ctl.write("silent", stage.conf(1, endpoint="192.0.2.1:9"))
    done = ctl.run("run", *arguments)
    assert done.returncode == status, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_bus(ctl: Ctl) -> None:
    for variable in ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        ctl.environment.pop(variable, None)
    done = ctl.run("run", "office", "true")
    assert done.returncode == 125
    assert "no session bus" in done.stderr
    assert "wg4netnsctl doctor" in done.stderr


@pytest.mark.parametrize("number", ENDINGS_TRIED, ids=lambda number: number.name)
def test_killed(ctl: Ctl, number: signal.Signals) -> None:
    running = ctl.popen("run", "office", "--", "sh", "-c", STAYS)
    assert running.stdout
    netns = running.stdout.readline().split()[1]
    processes = descendants(running.pid)
    assert len(processes) >= 3  # init, the command, its background process
    assert len(in_netns(netns)) >= 3
    running.send_signal(number)
    status = running.wait(10)
    assert status in (-number, 128 + number)
    wait_for(lambda: not any(map(is_alive, processes)), "all of it has ended")
    wait_for(lambda: not in_netns(netns), "nobody is in its namespace")
    running.stdout.close()


def test_its_init_killed(ctl: Ctl) -> None:
    running = ctl.popen("run", "office", "--", "sh", "-c", STAYS)
    assert running.stdout
    running.stdout.readline()
    init, *_ = sorted(descendants(running.pid))
    os.kill(init, signal.SIGKILL)
    assert running.wait(10) == 128 + signal.SIGKILL
    running.stdout.close()


def in_netns(netns: str) -> set[int]:
    """Our processes in a namespace."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/net") == netns:
                found.add(int(process.name))
        except OSError:
            continue
    return found


# ---------------------------------------------------------------- on a terminal


def test_the_terminal_goes(ctl: Ctl) -> None:
    with ctl.terminal(
        "run", "office", "--", "sh", "-c", "sleep 1000 & echo on it; wait"
    ) as terminal:
        terminal.wait_screen("on it")
        processes = terminal.processes()
        terminal.hang_up()
        wait_for(lambda: not any(is_alive(p) for p in processes), "all of it has ended")


def test_control_c_is_the_commands(ctl: Ctl) -> None:
    script = "trap 'n=$((n+1)); echo trapped $n' INT; echo ready; while :; do sleep 0.01; done"
    with ctl.terminal("run", "office", "--", "sh", "-c", script) as terminal:
        terminal.wait_screen("ready")
        terminal.type("\x03")
        terminal.wait_screen("trapped 1")  # once: only from the terminal
        terminal.type("\x03")
        terminal.wait_screen("trapped 2")
        assert "trapped 3" not in terminal.screen
        terminal.type("\x1c")
        assert terminal.wait_status() == 128 + signal.SIGQUIT


@pytest.mark.parametrize("pids", [(), ("--share-pids",)], ids=["own pids", "shared pids"])
def test_control_c_reaches_a_command_with_a_group_of_its_own(
    ctl: Ctl, pids: tuple[str, ...]
) -> None:
    command = ("timeout", "100", "sh", "-c", "echo ready; exec sleep 100")
    with ctl.terminal("run", *pids, "office", "--", *command) as terminal:
        terminal.wait_screen("ready")
        terminal.type("\x03")
        # timeout(1) ends by the signal, or, if its child was faster, with 130.
        assert terminal.wait_status() in (124, 130, -signal.SIGINT)


def test_a_shell_has_job_control(ctl: Ctl) -> None:
    with ctl.terminal("run", "office", "--", "bash", "--norc", "-i") as terminal:
        terminal.type("PS1='pr''ompt '\n")
        terminal.wait_screen("prompt ")
        terminal.type("sh -c 'echo in''side; exec sleep 1000'\n")
        terminal.wait_screen("inside")
        terminal.type("\x1a")
        terminal.wait_screen("Stopped")
        terminal.type("kill %1; exit 5\n")
        terminal.type("exit 5\n")
        assert terminal.wait_status() == 5


def test_warnings(ctl: Ctl, stage: Stage, client: Client) -> None:
    ctl.check("up", "office")
    done = ctl.run("run", "office", "true")
    assert done.returncode == 0
    assert "'office' has the same PrivateKey" in done.stderr
    ctl.check("down", "office")
    ctl.write("lost", stage.conf(0, endpoint="nowhere.test:51820"))
    (ctl.configurations / "lost.conf").chmod(0o644)
    done = ctl.run("run", "lost", "true")
    assert done.returncode == 0
    assert re.search(r"warning: lost-\d+: nowhere\.test: ", done.stderr)
    assert "lost.conf: others may read it" in done.stderr
    done = ctl.run("run", "--handshake", "--timeout=1", "lost", "true")
    assert done.returncode == 125
    assert "no handshake within 1 s: nowhere.test: " in done.stderr


def test_progress(ctl: Ctl, stage: Stage) -> None:
    ctl.write("silent", stage.conf(1, endpoint="192.0.2.1:9"))
    with ctl.terminal("run", "--handshake", "--timeout", "2", "silent", "true") as terminal:
        terminal.wait_screen("waiting for a handshake … 1 s")
        assert terminal.wait_status() == 125
        assert "\r\x1b[Kwg4netnsctl: no handshake within 2 s" in terminal.screen


def test_no_progress_in_a_pipe(ctl: Ctl, stage: Stage) -> None:
    ctl.write("silent", stage.conf(1, endpoint="192.0.2.1:9"))
    done = ctl.run("run", "--handshake", "--timeout", "1", "silent", "true")
    assert done.stderr.splitlines()[0] == "wg4netnsctl: no handshake within 1 s"
