"""`wg4netnsctl doctor`, where all is well and where something is really amiss."""

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wg4netnsd
from support.bus import MANAGER, NAME, Bus, Client, DBusError
from support.daemon import Daemon
from support.doctor import PROGRAM, Finding, ask, problems, read
from support.manager import SHIPPED, UNIT, UserManager, changed, drop_in, program
from support.processes import of_program, wait_for
from support.stage import LIBFAKETIME, Stage
from wg4netnsd.ctl import doctor
from wg4netnsd.ctl.doctor import finding

SHORT = f"~/{SHIPPED.relative_to(Path.home())}"
STOCK = Path("/run/stock/wireguard-go")
PAGE = Path(__file__).parents[2] / "docs/wg4netnsctl.1"

IN_USERNS = ("unshare", "--user", "--map-root-user")


def within(script: str, *options: str) -> list[str]:
    """To run it in namespaces of its own, after a script there."""
    return [*IN_USERNS, *options, "sh", "-ec", f'{script}\nexec "$@"', "sh"]


# ---------------------------------------------------------------- all is well


def test_nothing_is_amiss_on_the_stage(installed: UserManager) -> None:
    found = ask()
    assert problems(found) == set()
    assert found["unit"].found == f"{SHORT}, inactive"
    assert found["session-bus"].found == f"unix:path={installed.runtime}/bus"
    assert found["daemon"].found.startswith("does not run")
    assert re.fullmatch(r"wireguard-go v[\d.]+, static, .*", found["engine"].found)
    # Nothing was started, and nothing stays.
    assert installed.property(UNIT, "ActiveState") == "inactive"
    assert of_program("wireguard-go") == set()
    assert of_program("wg4netnsctl") == set()


def test_the_manual_has_each_check(installed: UserManager) -> None:
    section = PAGE.read_text().partition(".Sh WHAT DOCTOR CHECKS")[2].partition(".Sh ")[0]
    assert set(re.findall(r"^\.It Cm (\S+)$", section, re.MULTILINE)) == set(ask())


def test_a_running_daemon_is_looked_at(installed: UserManager) -> None:
    installed.systemctl("start", UNIT)
    found = ask()
    assert problems(found) == set()
    assert found["unit"].found == f"{SHORT}, active"
    assert re.fullmatch(
        rf"version {re.escape(wg4netnsd.__version__)}, wireguard-go [\d.]+, 0 of \d+ tunnels",
        found["daemon"].found,
    )


# ---------------------------------------------------------------- what it looks like


def shown(**environment: str) -> str:
    command = [PROGRAM, "doctor"]
    return subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ).stdout


def test_text_is_plain_and_80_columns_wide(installed: UserManager) -> None:
    found = ask()
    text = shown(XDG_RUNTIME_DIR="/run/nowhere")
    *lines, summary = text.splitlines()
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert len(heads) == len(found)
    counts = [f"{heads.count('problem')} problems", f"{heads.count('note')} notes"]
    assert summary == ", ".join(counts)
    assert [line for line in lines if len(line) > 80] == []
    assert "\x1b" not in text
    assert [line.strip() for line in lines if line.startswith(" " * 13 + "export ")] != []


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)],
)
def test_colours_are_for_terminals(environment: dict[str, str], coloured: bool) -> None:
    ours, its = pty.openpty()
    with subprocess.Popen([PROGRAM, "doctor"], env=os.environ | environment, stdout=its):
        os.close(its)
        with open(ours, "rb") as terminal:
            first = terminal.readline()
            with contextlib.suppress(OSError):  # EIO: the other side is closed
                terminal.read()
    assert first.startswith(b"\x1b[32mok\x1b[m       host" if coloured else b"ok       host")


# ---------------------------------------------------------------- the session


def test_without_the_variable_of_a_login(installed: UserManager) -> None:
    unset = {"XDG_RUNTIME_DIR": "", "DBUS_SESSION_BUS_ADDRESS": ""}
    found = ask(env=unset)
    assert problems(found) == {"runtime-directory", "session-bus"}
    for each in ("activation", "user-manager", "unit", "daemon"):
        assert found[each].advice == "See to 'session bus' first."
    # What it says to do helps.
    script = "\n".join([*found["runtime-directory"].commands, 'exec "$@"'])
    assert problems(ask("sh", "-ec", script, "sh", env=unset)) == set()


def test_a_bus_that_is_gone(installed: UserManager, tmp_path: Path) -> None:
    env = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/bus"}
    found = ask(env=env)
    assert problems(found) == {"session-bus"}
    assert "No such file or directory" in found["session-bus"].found
    script = "\n".join([*found["session-bus"].commands, 'exec "$@"'])
    assert problems(ask("sh", "-ec", script, "sh", env=env)) == set()


def test_a_runtime_directory_that_is_not_ours(installed: UserManager) -> None:
    found = ask(env={"XDG_RUNTIME_DIR": "/run"})
    assert problems(found) == {"runtime-directory", "session-bus"}
    assert found["runtime-directory"].found == "/run is another user's, of uid 0"


def test_a_runtime_directory_that_is_open(bus: Bus, tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": bus.address}
    found = ask(env=env)["runtime-directory"]
    assert (found.status, found.commands) == ("note", [f"chmod 0700 {tmp_path}"])


def test_a_bus_that_hangs(bus: Bus) -> None:
    bus.process.send_signal(signal.SIGSTOP)
    found = ask(env={"DBUS_SESSION_BUS_ADDRESS": bus.address})
    bus.process.send_signal(signal.SIGCONT)
    assert found["session-bus"].status == "problem"
    assert found["session-bus"].advice
    assert found["session-bus"].advice.startswith("It hangs.")


def test_a_bus_without_systemd_and_a_daemon_that_hangs(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon()
    env = {"DBUS_SESSION_BUS_ADDRESS": daemon.address}
    found = ask(env=env)
    assert problems(found) == {"activation"}
    assert "no systemd on this bus" in found["user-manager"].found
    assert found["daemon"].status == "ok"
    daemon.process.send_signal(signal.SIGSTOP)
    hanging = ask(env=env)["daemon"]
    daemon.process.send_signal(signal.SIGCONT)
    assert hanging.status == "problem"
    assert "no answer within" in hanging.found


# ---------------------------------------------------------------- the unit


def test_what_is_not_installed(user_manager: UserManager) -> None:
    found = ask()
    assert problems(found) == {"activation", "unit"}
    for each in ("activation", "unit"):
        assert found[each].commands == ["wg4netnsctl setup"]


def test_a_unit_that_is_masked(installed: UserManager) -> None:
    installed.systemctl("mask", UNIT)
    found = ask()
    assert problems(found) == {"unit"}
    subprocess.run(shlex.split(found["unit"].commands[0]), check=True, capture_output=True)
    assert problems(ask()) == set()


def test_a_unit_that_systemd_can_not_read(installed: UserManager) -> None:
    content = SHIPPED.read_text()
    SHIPPED.write_text(content.replace("ExecStart=", "ExecReload="))
    installed.systemctl("daemon-reload")
    found = ask()["unit"]
    SHIPPED.write_text(content)
    installed.systemctl("daemon-reload")
    assert found.status == "problem"
    assert "can't be loaded" in found.found


@pytest.mark.parametrize("interpreter", [False, True])
def test_a_unit_whose_program_is_gone(
    installed: UserManager, tmp_path: Path, interpreter: bool
) -> None:
    command = tmp_path / "wg4netnsd"
    if interpreter:
        command.write_text(f"#!{tmp_path}/gone/bin/python\n")
        command.chmod(0o755)
    with changed(installed, *program(str(command))):
        found = ask()["unit"]
    missing = tmp_path / "gone/bin/python" if interpreter else command
    assert (found.status, found.found) == (
        "problem",
        f"it would start {missing}, which is not there",
    )
    assert found.advice
    assert f"{UNIT}.d/test.conf" in found.advice


def test_a_unit_of_another_installation(installed: UserManager) -> None:
    with changed(installed, *program("/bin/true")):
        found = ask()
    assert problems(found) == set()
    assert found["unit"].status == "note"
    assert found["unit"].found.startswith("it starts /bin/true, not this installation's ")


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (78, r"it has failed: exit-code, status 78"),
        (1, r"it has failed: exit-code, status 1, after \d restarts"),
        (0, r"it was started so often that systemd does not for a minute"),
    ],
)
def test_a_unit_that_fails(installed: UserManager, status: int, found: str) -> None:
    failing = ["Type=exec", *program("/bin/sh", "-c", f"exit {status}")]
    installed.systemctl("enable", UNIT)  # what nobody wants, systemd forgets once it has ended
    with drop_in(installed, "[Unit]", "StartLimitBurst=2", "[Service]", *failing):
        for _ in range(3):
            installed.systemctl("start", UNIT, check=False)
            wait_for(
                lambda: installed.property(UNIT, "ActiveState") in ("failed", "inactive"),
                "it has ended",
            )
        looked = ask()
    installed.systemctl("disable", UNIT)
    assert problems(looked) == {"unit"}
    assert re.fullmatch(found, looked["unit"].found)
    assert "systemctl --user reset-failed wg4netnsd" in looked["unit"].commands


def test_a_unit_that_has_changed(installed: UserManager) -> None:
    content = SHIPPED.read_text()
    installed.systemctl("start", UNIT)
    SHIPPED.write_text(f"{content}# changed\n")
    os.utime(SHIPPED, (2**31, 2**31))  # for systemd, which compares times, another one
    found = ask()["unit"]
    assert (found.status, found.commands) == ("note", ["systemctl --user daemon-reload"])
    SHIPPED.write_text(content)
    installed.systemctl("daemon-reload")
    assert ask()["unit"].status == "ok"


def test_a_daemon_of_another_version(installed: UserManager) -> None:
    code = (
        "import wg4netnsd; wg4netnsd.__version__ = '0.0.1'; "
        "from wg4netnsd.daemon import main; main()"
    )
    with changed(installed, *program(sys.executable, "-c", code)):
        installed.systemctl("start", UNIT)
        found = ask()["daemon"]
    assert found.status == "note"
    assert found.found.startswith("version 0.0.1, ")
    assert found.commands == ["systemctl --user restart wg4netnsd"]


# ---------------------------------------------------------------- the TUN


@pytest.fixture
def ask_from(stage: Stage, tmp_path: Path) -> Iterator[Callable[[str], dict[str, Finding]]]:
    """Asks in the mount namespace of one of the stage's other buses, by an activation there."""
    files: list[Path] = []

    def ask(runtime: str) -> dict[str, Finding]:
        output, status = tmp_path / "output", tmp_path / "status"
        script = f"{PROGRAM} doctor --json >{output}; echo $? >{status}; exit 1"
        services = Path(runtime) / "dbus-1/services"
        services.mkdir(parents=True, exist_ok=True)
        service = services / f"{NAME}.Doctor.service"
        files.append(service)
        service.write_text(
            f"[D-BUS Service]\nName={NAME}.Doctor\nExec=/bin/sh -c {shlex.quote(script)}\n"
        )
        with Client(f"unix:path={runtime}/bus") as client:
            client.bus("ReloadConfig")
            with pytest.raises(DBusError):  # it ends without having taken the name
                client.bus("StartServiceByName", "su", f"{NAME}.Doctor", 0)
        wait_for(status.exists, "doctor has ended")
        return read(output.read_text(), int(status.read_text()))

    yield ask
    for each in files:
        each.unlink()


def test_no_tun(stage: Stage, ask_from: Callable[[str], dict[str, Finding]]) -> None:
    found = ask_from(stage.no_tun_runtime)["tun"]
    assert found.status == "problem"
    assert found.found == "is missing, though the kernel has its driver, as in a container"
    assert "sudo mknod -m 0666 /dev/net/tun c 10 200" in found.commands


def test_a_tun_that_is_roots_alone(
    stage: Stage, ask_from: Callable[[str], dict[str, Finding]]
) -> None:
    found = ask_from(stage.closed_tun_runtime)["tun"]
    assert (found.status, found.found) == ("problem", "is not open to you: its mode is 0600")
    assert found.commands[0] == "sudo chmod 0666 /dev/net/tun"


def test_a_tun_that_is_another_device() -> None:
    found = ask(*within("mount --bind /dev/null /dev/net/tun", "--mount"))["tun"]
    assert found.status == "problem"
    assert found.found.startswith("no interface can be made in a namespace: TUNSETIFF: ")


# ---------------------------------------------------------------- namespaces


def test_a_child_user_namespace_is_no_place_for_the_daemon() -> None:
    found = ask(*IN_USERNS)
    assert found["host"].status == "problem"


def test_a_bus_that_knows_us_by_another_uid(bus: Bus) -> None:
    """As root in a user namespace; where uids are mapped to themselves, it need not know."""
    env = {"DBUS_SESSION_BUS_ADDRESS": bus.address}
    found = ask(*IN_USERNS, env=env)["session-bus"]
    assert (found.status, found.advice) == ("problem", "See to 'host' first.")
    assert ask(*IN_USERNS[:2], "--map-current-user", env=env)["session-bus"].status == "ok"


@pytest.mark.parametrize(
    ("limit", "check", "status"),
    [
        ("user.max_user_namespaces", "user-namespaces", "problem"),
        ("user.max_net_namespaces", "user-namespaces", "problem"),
        ("user.max_mnt_namespaces", "proc", "note"),
        ("user.max_pid_namespaces", "proc", "note"),
    ],
)
def test_a_limit_of_none(limit: str, check: str, status: str) -> None:
    """Of a user namespace's own, which binds all that are made in it."""
    path = f"/proc/sys/{limit.replace('.', '/')}"
    found = ask(*within(f"echo 0 >{path}"))[check]
    assert found.status == status
    assert (found.advice or "").startswith(f"{limit} is 0.")
    assert f"sudo sysctl {limit}=15000" in found.commands


def test_a_limit_that_is_reached() -> None:
    """An outer one's: the namespace that we are in counts there, and our own limit is another."""
    script = f'echo 1 >/proc/sys/user/max_user_namespaces\nset -- {" ".join(IN_USERNS)} "$@"'
    found = ask(*within(script))["user-namespaces"]
    assert found.status == "problem"
    assert found.found.endswith("No space left on device")
    assert "There are as many as user.max_user_namespaces allows" in (found.advice or "")


CHROOT = """
mount -t tmpfs none /mnt
mkdir /mnt/root
for each in /*; do
    if [ -L "$each" ]; then
        cp --no-dereference "$each" /mnt/root
    elif [ -d "$each" ] && [ "$each" != /mnt ]; then
        mkdir "/mnt/root$each"
        mount --rbind "$each" "/mnt/root$each"
    fi
done
set -- /usr/sbin/chroot /mnt/root "$@"
"""


def test_a_chroot() -> None:
    found = ask(*within(CHROOT, "--mount"))["user-namespaces"]
    assert found.status == "problem"
    assert found.found == "none can be had: a user namespace: unshare: Operation not permitted"
    assert (found.advice or "").startswith("This is a chroot")


@pytest.mark.parametrize(
    ("name", "value"),
    [("unprivileged_userns_clone", 0), ("apparmor_restrict_unprivileged_userns", 1)],
)
def test_a_sysctl_of_a_distributions(name: str, value: int) -> None:
    """No kernel at hand has them: their files are ours, and it is a chroot that forbids."""
    sysctls = f"mount -t tmpfs none /proc/sys/kernel\necho {value} >/proc/sys/kernel/{name}"
    found = ask(*within(f"{sysctls}{CHROOT}", "--mount"))["user-namespaces"]
    assert found.status == "problem"
    assert f"kernel.{name}" in (found.advice or "")
    assert f"sudo sysctl kernel.{name}={1 - value}" in found.commands
    if name.startswith("apparmor"):
        assert f'profile wg4netnsctl "{PROGRAM}"' in found.commands
        assert "userns," in found.commands


def test_a_filter_of_system_calls(installed: UserManager) -> None:
    run = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", "-p", "RestrictNamespaces=yes"]
    found = ask(*run)["user-namespaces"]
    assert found.status == "problem"
    assert "(seccomp)" in (found.advice or "")


def test_a_proc_that_is_covered() -> None:
    found = ask(*within("mount --bind /proc/sys /proc/sys", "--mount"))
    assert found["proc"].status == "note"
    assert "such as /proc/sys," in found["proc"].found
    assert "--share-pids" in (found["proc"].advice or "")
    assert found["user-namespaces"].status == "ok"


# ---------------------------------------------------------------- the machine


def test_ipv6_that_is_switched_off() -> None:
    """On the host; a new namespace has its own setting."""
    off = "net.ipv6.conf.all.disable_ipv6"
    found = ask(*within(f"echo 1 >/proc/sys/{off.replace('.', '/')}", "--net"))
    assert found["ipv6"].status == "ok"
    assert found["ipv6-endpoints"].status == "note"
    assert found["ipv6-endpoints"].commands == [f"sudo sysctl {off}=0"]


@pytest.mark.parametrize(
    ("route", "status"),
    [("default", "ok"), ("2001:db8::/32", "note"), ("unreachable default", "note")],
)
def test_a_route_for_ipv6_endpoints(route: str, status: str) -> None:
    link = "ip link add eth0 type veth peer name eth1\nip link set eth0 up"
    script = f"{link}\nip -6 route add {route} dev eth0"
    assert ask(*within(script, "--net"))["ipv6-endpoints"].status == status


def test_a_clock_that_was_set_back() -> None:
    faked = {
        "LD_PRELOAD": LIBFAKETIME,
        "FAKETIME": "-20y",
        "NO_FAKE_STAT": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    found = ask(env=faked)["clock"]
    assert found.status == "problem"
    assert "before this installation was made" in found.found


def test_a_limit_of_open_files() -> None:
    found = ask("prlimit", "--nofile=1000:1000")["open-files"]
    assert found.found == "the hard limit is 1000, which has room for 84 tunnels"
    assert found.status == "note"


def test_it_counts_tunnels_as_the_daemon_does(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    most = daemon.client.get("/org/wg4netns1", "MaxTunnels", MANAGER)
    assert ask()["open-files"].found == f"the hard limit has room for {most} tunnels"


# ---------------------------------------------------------------- programs


def test_programs_that_are_missing() -> None:
    found = ask(env={"PATH": str(PROGRAM.parent)})
    for each in ("busctl", "wg", "subordinate-ids"):
        assert found[each].status == "note"
        assert found[each].commands[0].startswith("sudo apt install ")


def test_ids_that_a_user_lacks() -> None:
    """Root's in a user namespace, who has none in the files."""
    found = ask(*IN_USERNS)["subordinate-ids"]
    assert found.status == "note"
    (uids, gids) = found.commands
    free = re.fullmatch(r"sudo usermod --add-subuids (\d+)-(\d+) root", uids)
    assert free
    assert int(free[2]) - int(free[1]) == 65535
    for line in Path("/etc/subuid").read_text().splitlines():
        _, first, count = line.split(":")
        assert int(first) + int(count) <= int(free[1])
    assert "--add-subgids" in gids


def as_dynamic(binary: bytes) -> bytes:
    return Path("/bin/true").read_bytes()


def as_of_another_machine(binary: bytes) -> bytes:
    return binary[:18] + b"\xf3\0" + binary[20:]  # RISC-V


def as_stock(binary: bytes) -> bytes:
    return STOCK.read_bytes()


def as_half(binary: bytes) -> bytes:
    return binary[: len(binary) // 2]


def as_none(binary: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (as_dynamic, "is another program: "),
        (as_of_another_machine, "is for machine 243, and this machine is "),
        (as_stock, "is not the patched one: it says 'Usage: "),
        (as_half, "does not run: "),
        (as_none, "does not run: not a program for a 64-bit machine"),
    ],
)
def test_an_engine_that_is_not_the_one(
    tmp_path: Path, spoil: Callable[[bytes], bytes], words: str
) -> None:
    package = Path(wg4netnsd.__file__).parent
    shutil.copytree(package, tmp_path / "wg4netnsd")
    engine = tmp_path / "wg4netnsd/bin/wireguard-go"
    engine.write_bytes(spoil(engine.read_bytes()))
    code = "from wg4netnsd.ctl import main; main()"
    found = ask(program=(sys.executable, "-c", code), env={"PYTHONPATH": str(tmp_path)})["engine"]
    assert found.status == "problem"
    assert f"{engine} {words}" in found.found
    assert "pip install --use-pep517 --force-reinstall ." in found.commands


def test_a_check_that_fails_is_told() -> None:
    def fails() -> finding.Finding:
        raise ValueError("what it can't parse")

    found = doctor._look(doctor.Check("strange", "strange", fails))
    assert found.status == "problem"
    assert found.found == "the check itself failed: ValueError: what it can't parse"
    assert "uname -a" in (found.advice or "")


def test_json_is_an_array_of_objects(bus: Bus) -> None:
    output = subprocess.run(
        [PROGRAM, "doctor", "--json"],
        env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": bus.address},
        capture_output=True,
        text=True,
    ).stdout
    assert output.count("\n") == 1
    for each in json.loads(output):
        assert set(each) == {"id", "title", "status", "found", "advice"}
