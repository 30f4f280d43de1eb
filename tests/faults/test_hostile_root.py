"""Root of a namespace that was attached, a container for example, attacks the programs that its
user runs there, and the user's files by means of them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.bus import Client, DBusError
from support.containers import podman
from support.ctl import PROGRAM, Ctl, ctl_with_office
from support.daemon import Daemon
from support.namespaces import MakeNamespace, Namespace
from support.stage import Stage

PYTHON = "/usr/bin/python3"  # where --trust-root finds one

# Waits for a client at an abstract socket, as an X server's, and takes what it can reach by means
# of that process and its parent: their root and directory, and then their mount namespace.
THIEF = """
import ctypes, os, re, socket, struct, sys
path, listening = sys.argv[1], socket.socket(socket.AF_UNIX)
listening.bind("\\0X")
listening.listen()
print("ready", flush=True)
client, _ = listening.accept()
credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
pid = struct.unpack("3i", credentials)[0]
parent = int(re.search(r"PPid:\\s*(\\d+)", open(f"/proc/{pid}/status").read())[1])

def take(path):
    try:
        print(open(path).read())
        os.remove(path)
    except OSError as error:
        print(error.strerror)

victims = [os.pidfd_open(pid), os.pidfd_open(parent)]
for victim in (pid, parent):
    take(f"/proc/{victim}/root{path}")
    take(f"/proc/{victim}/cwd{path}")
    take(f"/proc/{victim}/cwd/{os.path.basename(path)}")
for victim in victims:
    if ctypes.CDLL(None).setns(victim, 0x00020000) == 0:
        print("joined")
        take(path)
client.sendall(b"done")
"""

CLIENT = """
import socket
display = socket.socket(socket.AF_UNIX)
display.connect("\\0X")
display.recv(4)
"""


@pytest.fixture
def ctl(daemon: Daemon, client: Client, stage: Stage, directory: Path) -> Iterator[Ctl]:
    conf = stage.conf(0, DNS="198.51.100.1")
    with ctl_with_office(daemon.address, directory, client, conf) as ctl:
        yield ctl
        ctl.down_all(client)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("the user's")
    return path


@contextmanager
def thief(inside: Namespace, secret: Path) -> "Iterator[subprocess.Popen[str]]":
    """Root of the namespace, which does not see the user's files, as in a container."""
    hide = f"mount -t tmpfs tmpfs '{secret.parent}'; exec \"$@\""
    command = ("unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", THIEF)
    with inside.popen(*command, str(secret), stdout=-1) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("command", [("exec", "office", "--", "true"), ("shell", "office")])
def test_a_command_does_not_enter(ctl: Ctl, inside: Namespace, command: tuple[str, ...]) -> None:
    ctl.check("attach", "--pid", str(inside.pid), "office")
    refused = ctl.run(*command)
    assert refused.returncode == 125
    assert "wg4netnsctl did not make the namespace of 'office'" in refused.stderr
    assert "--trust-root" in refused.stderr
    assert "podman exec" in refused.stderr


def test_the_users_files_are_out_of_its_reach(ctl: Ctl, inside: Namespace, secret: Path) -> None:
    """A client of a server in there must not enter, and if root is trusted, bring no files."""
    ctl.check("attach", "--pid", str(inside.pid), "office")
    enter, connect = {"cwd": secret.parent}, ("office", "--", PYTHON, "-c", CLIENT)
    with thief(inside, secret) as running:
        refused = ctl.run("exec", *connect, **enter)
        assert secret.exists()
        assert refused.returncode == 125
        ctl.check("exec", "--trust-root", *connect, **enter)
        taken, _ = running.communicate(timeout=10)
    assert "the user's" not in taken
    assert secret.read_text() == "the user's"
    assert "joined" in taken  # else this tests nothing


def test_a_trusted_root_sees_the_system_only(
    ctl: Ctl, inside: Namespace, secret: Path, stage: Stage
) -> None:
    ctl.check("attach", "--pid", str(inside.pid), "office")
    run = ("exec", "--trust-root", "office", "--", "sh", "-c")
    seen = ctl.check(*run, "echo /*; echo /proc/[0-9]*; pwd; echo $WG4NETNS; ls /run /tmp /dev/shm")
    root, processes, directory, name, *rest = seen.splitlines()
    system = {"bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr"}
    assert set(root.split()) - {f"/{name}" for name in system} == {
        *("/dev", "/proc", "/run", "/sys", "/tmp", "/var")
    }
    assert processes == "/proc/1 /proc/2"
    assert (directory, name) == ("/", "office")
    assert [line for line in rest if line] == ["/dev/shm:", "/run:", "/tmp:"]
    assert ctl.run(*run, f"cat {secret}").returncode == 1
    assert "198.51.100.1" in ctl.check(*run, "cat /etc/resolv.conf")
    links = ctl.check(*run, "ls /sys/class/net; echo >/dev/null; exit 0")
    assert set(links.split()) == {"lo", "wg0"}
    ctl.check("exec", "--trust-root", "office", "--", "ping", "-c1", "-W10", stage.far.ipv4)
    assert ctl.run(*run, "exit 9").returncode == 9
    assert ctl.run(*run, "kill -TERM $$").returncode == 143
    missing = ctl.run("exec", "--trust-root", "office", str(PROGRAM))
    assert missing.returncode == 127


def test_a_descriptor_of_the_users_stays_outside(ctl: Ctl, inside: Namespace, secret: Path) -> None:
    ctl.check("attach", "--pid", str(inside.pid), "office")
    with secret.open() as opened:
        fds = {"pass_fds": [opened.fileno()]}
        run = ("exec", "--trust-root", "office", "--", "sh", "-c")
        assert ctl.check(*run, "echo /proc/self/fd/*", **fds).split()[:3] == [
            "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2",
        ]  # fmt: skip
        assert ctl.run(*run, f"cat /proc/self/fd/{opened.fileno()}", **fds).returncode == 1


def test_what_wg4netnsctl_made_is_entered(ctl: Ctl, client: Client) -> None:
    ctl.check("up", "office")
    ctl.check("exec", "office", "true")
    ctl.check("exec", "--trust-root", "office", "true")
    ((_, path, _),) = client.tunnels()
    assert client.get(path, "RootTrusted") is True
    ctl.check("down", "office")
    running = ctl.popen("run", "office", "--", "sh", "-c", "echo $WG4NETNS; exec sleep 1000")
    assert running.stdout
    ctl.check("exec", running.stdout.readline().strip(), "true")
    running.terminate()
    running.communicate(timeout=10)


def test_who_is_inside_may_stay(ctl: Ctl, namespace: MakeNamespace) -> None:
    """As in the recipes for rootlesskit and unshare; others still may not come in."""
    script = f"""
        '{PROGRAM}' attach --netns /proc/self/ns/net office >&2
        '{PROGRAM}' exec office -- cat /etc/resolv.conf; read -r end
    """
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script]
    with subprocess.Popen(command, env=ctl.environment, text=True, stdin=-1, stdout=-1) as running:
        assert running.stdin and running.stdout
        assert "wg4netnsd" in running.stdout.readline()
        assert ctl.run("exec", "office", "true").returncode == 125
        running.stdin.close()


def test_only_the_creators_word_counts(ctl: Ctl, inside: Namespace, client: Client) -> None:
    """Whatever the namespace and its lifetime are like."""
    ctl.check("attach", "--lifetime=persistent", "--pid", str(inside.pid), "office")
    ((_, path, _),) = client.tunnels()
    assert client.get(path, "RootTrusted") is False
    assert ctl.run("exec", "office", "true").returncode == 125


# ---------------------------------------------------------------- the daemon's resolv.conf


def test_what_a_container_writes_is_not_looked_up(
    ctl: Ctl, inside: Namespace, client: Client
) -> None:
    ctl.check("attach", "--pid", str(inside.pid), "office")
    ((_, path, _),) = client.tunnels()
    file = Path(client.get(path, "ResolvConf"))
    file.write_text("nameserver 192.0.2.66\n")  # as root of a container with CAP_SYS_ADMIN can
    seen = ctl.check("exec", "--trust-root", "office", "--", "cat", "/etc/resolv.conf")
    assert "192.0.2.66" not in seen
    assert "nameserver 198.51.100.1\n" in seen


def test_the_daemon_reads_no_more_than_it_wrote(
    ctl: Ctl, inside: Namespace, client: Client, daemon: Daemon, stage: Stage
) -> None:
    ctl.check("attach", "--pid", str(inside.pid), "office")
    ((_, path, _),) = client.tunnels()
    file = Path(client.get(path, "ResolvConf"))
    text = file.read_text()
    os.truncate(file, 1 << 30)
    ctl.check("reload", "office")
    assert file.read_text() == text
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    (most,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    assert int(most) < 1 << 19


def test_a_command_can_not_write_to_it(ctl: Ctl) -> None:
    ctl.check("up", "office")
    done = ctl.run("exec", "office", "--", "sh", "-c", "echo >/etc/resolv.conf")
    assert "Read-only" in done.stderr


# ---------------------------------------------------------------- what stays the host's


@pytest.mark.parametrize("pids", [(), ("--share-pids",)], ids=["own pids", "shared pids"])
def test_sys_shows_no_interface_of_the_host(ctl: Ctl, pids: tuple[str, ...]) -> None:
    seen = ctl.check("run", *pids, "office", "--", "sh", "-c", "cd /sys/class/net; echo *")
    assert set(seen.split()) == {"lo", "wg0"}
    ctl.check("up", "office")
    assert set(ctl.check("exec", "office", "ls", "/sys/class/net").split()) == {"lo", "wg0"}


def test_what_is_mounted_in_sys_stays(ctl: Ctl) -> None:
    """cgroups above all, by which programs learn their limits."""

    def below_sys(mountinfo: str) -> set[str]:
        return set(re.findall(r" (/sys/\S+) ", mountinfo))

    inside = ctl.check("run", "--share-pids", "office", "--", "cat", "/proc/self/mountinfo")
    assert below_sys(inside) == below_sys(Path("/proc/self/mountinfo").read_text())
    listed = ctl.check("run", "office", "ls", "/sys/fs/cgroup")
    assert listed.split() == sorted(os.listdir("/sys/fs/cgroup"))


# ---------------------------------------------------------------- a file that others may write to


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_configuration_that_others_may_write_to(
    ctl: Ctl, inside: Namespace, client: Client, mode: int
) -> None:
    conf = ctl.configurations / "office.conf"
    conf.chmod(mode)
    refusal = f"others may write to it (mode {mode:04o})"
    attach = ("attach", "--pid", str(inside.pid))
    for words in (("run",), ("up",), attach):
        command = ("--", "true") if words == ("run",) else ()
        done = ctl.run(*words, "office", *command)
        assert done.returncode in (5, 125)
        assert refusal in done.stderr
        assert "chmod 600" in done.stderr
    with pytest.raises(DBusError, match=r"InvalidConfig: .*others may write to it"):
        client.manager("CreateTunnelFromPaths", "ssa{sv}", inside.path, str(conf), {})
    conf.chmod(0o600)


def test_a_configuration_of_another_user(
    ctl: Ctl, client: Client, inside: Namespace, stage: Stage, tmp_path: Path
) -> None:
    """One of the subordinate ids that this user has; by path and by descriptor."""
    theirs = tmp_path / "theirs.conf"
    theirs.write_text(stage.conf(0))
    theirs.chmod(0o644)
    podman("unshare", "chown", "1:1", str(theirs))
    refusal = f"owned by uid {theirs.stat().st_uid}: expected a file of yours"
    done = ctl.run("attach", "--pid", str(inside.pid), str(theirs))  # this passes a descriptor
    assert done.returncode == 5
    assert refusal in done.stderr
    with pytest.raises(DBusError, match=refusal):
        client.manager("CreateTunnelFromPaths", "ssa{sv}", inside.path, str(theirs), {})
