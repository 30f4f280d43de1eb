"""`wg4netnsctl doctor` on faulty machines: TUN, namespaces, limits, programs, engine."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wg4netnsd
from support.bus import MANAGER, NAME, Bus, Client, DBusError
from support.daemon import Daemon
from support.doctor import PROGRAM, Finding, ask, read
from support.manager import UserManager
from support.processes import wait_for
from support.stage import LIBFAKETIME, Stage

pytestmark = pytest.mark.distribution

STOCK = Path("/run/stock/wireguard-go")
IN_USERNS = ("unshare", "--user", "--map-root-user")


def within(script: str, *options: str) -> list[str]:
    """A prefix that runs a command in new namespaces, after a script."""
    return [*IN_USERNS, *options, "sh", "-ec", f'{script}\nexec "$@"', "sh"]


# ---------------------------------------------------------------- the TUN


@pytest.fixture
def ask_from(stage: Stage, tmp_path: Path) -> Iterator[Callable[[str], dict[str, Finding]]]:
    """Run doctor in the mount namespace of another of the stage's buses, which activates it."""
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
            # It ends without taking the name.
            with pytest.raises(DBusError, match="exited with status 1"):
                client.bus("StartServiceByName", "su", f"{NAME}.Doctor", 0)
        wait_for(status.exists, "doctor has ended")
        return read(output.read_text(), int(status.read_text()))

    yield ask
    for each in files:
        each.unlink()


def test_no_tun(stage: Stage, ask_from: Callable[[str], dict[str, Finding]]) -> None:
    found = ask_from(stage.no_tun_runtime)["tun"]
    assert found.status == "problem"
    assert found.found == "is missing although the kernel has its driver, as in a container"
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
    """It does if we are root in a user namespace; if uids are mapped to themselves, it does not."""
    env = {"DBUS_SESSION_BUS_ADDRESS": bus.address}
    found = ask(*IN_USERNS, env=env)["session-bus"]
    assert (found.status, found.advice) == ("problem", "Fix 'host' first.")
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
    """The limit of a user namespace applies to all namespaces made in it."""
    path = f"/proc/sys/{limit.replace('.', '/')}"
    found = ask(*within(f"echo 0 >{path}"))[check]
    assert found.status == status
    assert (found.advice or "").startswith(f"{limit} is 0.")
    assert f"sudo sysctl {limit}=15000" in found.commands


def test_a_limit_that_is_reached() -> None:
    """The limit of the outer user namespace, where ours counts; ours has its own limit."""
    script = f'echo 1 >/proc/sys/user/max_user_namespaces\nset -- {" ".join(IN_USERNS)} "$@"'
    found = ask(*within(script))["user-namespaces"]
    assert found.status == "problem"
    assert found.found.endswith("No space left on device")
    assert "The limit user.max_user_namespaces is reached" in (found.advice or "")


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
    assert found.found == "none can be made: a user namespace: unshare: Operation not permitted"
    assert (found.advice or "").startswith("This is a chroot")


@pytest.mark.parametrize(
    ("name", "value"),
    [("unprivileged_userns_clone", 0), ("apparmor_restrict_unprivileged_userns", 1)],
)
def test_a_sysctl_of_a_distributions(name: str, value: int) -> None:
    """No kernel at hand has them: we make the files, and a chroot makes the kernel refuse."""
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
    """It is off on the host; a new namespace has its own setting."""
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
    assert found.found == "the hard limit is 1000, which has room for 49 tunnels"
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
    """In a user namespace we are root, who has none in the files."""
    found = ask(*IN_USERNS)["subordinate-ids"]
    assert found.status == "note"
    (uids, gids) = found.commands
    free = re.fullmatch(r"sudo usermod --add-subuids (\d+)-(\d+) root", uids)
    assert free
    assert int(free[2]) - int(free[1]) == 65535
    taken = [line.split(":") for line in Path("/etc/subuid").read_text().splitlines()]
    assert max(int(first) + int(count) for _, first, count in taken) <= int(free[1])
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
