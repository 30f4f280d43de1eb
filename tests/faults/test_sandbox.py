"""The shipped unit's directives, each seen at work in a real `systemd --user`."""

import json
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import probe
from support.bus import NAME, Client
from support.manager import SHIPPED, UNIT, UserManager, changed, program
from support.namespaces import MakeNamespace
from support.processes import status
from support.stage import Stage

pytestmark = pytest.mark.distribution

SESSION_KEYRING = probe.session_keyring()

# ---------------------------------------------------------------- what systemd makes of it

SETTINGS = {
    "Type": "notify",
    "NotifyAccess": "main",
    "BusName": NAME,
    "Restart": "on-failure",
    "RestartUSec": "200ms",
    "WatchdogUSec": "30s",
    "TimeoutStopUSec": "15s",
    "StartLimitIntervalUSec": "1min",
    "StartLimitBurst": "10",
    "KillMode": "process",
    "OOMPolicy": "continue",
    "TasksMax": "16384",
    "MemorySwapMax": "0",
    "FileDescriptorStoreMax": "4096",
    "RuntimeDirectoryMode": "0700",
    "LimitNOFILE": "8192",
    "UMask": "0077",
}


def test_systemd_knows_each_setting(unit: UserManager) -> None:
    """Also those whose effect can't be seen here, for want of their cgroup controllers."""
    unit.systemctl("start", UNIT)
    assert {name: unit.property(UNIT, name) for name in SETTINGS} == SETTINGS
    assert {"dbus.socket"} <= set(unit.property(UNIT, "Requires").split())
    assert {"dbus.socket"} <= set(unit.property(UNIT, "After").split())


def test_systemd_has_nothing_to_say_against_it(unit: UserManager) -> None:
    command = ["systemd-analyze", "--user", "verify", "--man=no", str(SHIPPED)]
    verified = subprocess.run(command, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


# ---------------------------------------------------------------- the sandbox


@dataclass(frozen=True)
class Row:
    """What a directive forbids, and what comes of it where this one directive is lifted."""

    lifted: str
    probe: str
    forbidden: str
    free: str
    also: str = ""
    """Another directive, lifted in both cases: it forbids this too."""
    by_kernel: str = ""
    """What comes of it where the kernel itself forbids it, as newer systemd has it (MDWE)."""


ROWS = [
    *(
        Row("RestrictNamespaces=no", f"{kind} namespace", "EPERM", "ok")
        for kind in ("mount", "cgroup", "UTS", "IPC", "PID")
    ),
    Row("RestrictNamespaces=no", "setns of any kind", "EPERM", "ok"),
    Row("RestrictAddressFamilies=", "packet socket", "EAFNOSUPPORT", "ok"),
    *(
        Row("MemoryDenyWriteExecute=no", name, "EPERM", "ok", by_kernel="EACCES")
        for name in ("writable and executable", "made executable")
    ),
    Row("RestrictSUIDSGID=no", "set-user-id", "EPERM", "ok"),
    Row("LockPersonality=no", "personality", "EPERM", "ok"),
    Row("RestrictRealtime=no", "real time", "EPERM", "EINVAL", also="SystemCallFilter="),
    Row("KeyringMode=inherit", "inherited session keyring", "ENOKEY", "ok", "SystemCallFilter="),
    Row("SystemCallErrorNumber=", "mount", "EPERM", "SIGSYS"),
    Row("SystemCallFilter=", "mount", "EPERM", "EFAULT"),
    Row("SystemCallFilter=", "chroot", "EPERM", "EFAULT"),
    Row("SystemCallFilter=", "asynchronous I/O", "EPERM", "EFAULT"),
    *(
        Row("SystemCallFilter=", name, "EPERM", "ok")
        for name in ("setuid", "batch", "keyring", "a process's memory", "ptrace")
    ),
]
if platform.machine() == "x86_64":  # where the kernel knows of others
    ROWS.append(Row("SystemCallArchitectures=", "another ABI", "SIGSYS", "ENOSYS"))


def probed(manager: UserManager, directory: Path, names: list[str], *service: str) -> list[str]:
    """What comes of them in the shipped unit with these lines."""
    output = directory / "outcomes.json"
    command = program(sys.executable, "-I", probe.__file__, str(output), *names)
    environment = f"Environment=SESSION_KEYRING={SESSION_KEYRING}"
    with changed(manager, "Type=oneshot", *command, environment, *filter(None, service)):
        manager.systemctl("start", UNIT)
    outcomes = json.loads(output.read_text())
    return [outcomes[name] for name in names]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.lifted}{row.probe}")
def test_what_is_forbidden_fails_and_by_that_directive(
    unit: UserManager, tmp_path: Path, row: Row
) -> None:
    told, by_kernel = probed(unit, tmp_path, [row.probe, "PR_GET_MDWE"], row.also)
    assert told == (row.by_kernel if row.by_kernel and by_kernel == "ok" else row.forbidden)
    assert probed(unit, tmp_path, [row.probe], row.also, row.lifted) == [row.free]


def test_what_the_daemon_needs_is_not_forbidden(unit: UserManager, tmp_path: Path) -> None:
    needed = ["user namespace", "network namespace", "our sockets"]
    assert probed(unit, tmp_path, needed) == ["ok"] * len(needed)


ELSEWHERE = {
    *("Description", "Documentation", "Requires", "After", "ExecStart", "WantedBy"),
    *("NoNewPrivileges", "LimitCORE"),  # below
    *("RuntimeDirectory", "RuntimeDirectoryPreserve"),  # in test_unit.py
    "RestartPreventExitStatus",  # in test_bus_gone.py
}


def test_no_directive_is_forgotten_here(unit: UserManager) -> None:
    lines = [line for line in SHIPPED.read_text().splitlines() if line[:1].isalpha()]
    settings = {name.replace("USec", "Sec") for name in SETTINGS}
    sandbox = {row.lifted.partition("=")[0] for row in ROWS}
    assert {line.partition("=")[0] for line in lines} == settings | sandbox | ELSEWHERE


# ---------------------------------------------------------------- processes and limits


def limits(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def test_the_daemon_and_its_engines_are_in_the_sandbox(
    unit: UserManager, namespace: MakeNamespace, stage: Stage
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    core = "0" if hard == 0 else "1"  # sudo leaves nobody more than 0 (rlimit_core of sudoers(5))
    with Client(unit.address) as client:
        path = client.create(namespace(), stage.conf())
        pids = [int(unit.property(UNIT, "MainPID")), int(client.get(path, "EnginePID"))]
        for pid in pids:
            seen = status(Path(f"/proc/{pid}"))
            assert (seen["NoNewPrivs"], seen["Seccomp"], seen["Umask"]) == ("1", "2", "0077")
            assert limits(pid)["Max core file size"] == [core, core]
            assert limits(pid)["Max open files"] == ["8192", "8192"]
        assert set(pids) <= unit.processes(UNIT)
