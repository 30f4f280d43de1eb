"""An engine that can't have all of what confines it, on an older kernel or in a container that
filters system calls, does its work all the same; and that is told wherever one would look."""

import errno
import json
import os
from pathlib import Path

import pytest

from support import doctor
from support.bus import MANAGER, ROOT, Client
from support.daemon import Daemon
from support.engines import ask, connect, serve_uapi, waiting_engine
from support.journal import Journal
from support.manager import UserManager, changed
from support.namespaces import MakeNamespace
from support.stage import Stage
from support.tunnels import tunnel
from support.without import (
    LANDLOCK_CREATE_RULESET,
    LANDLOCK_RESTRICT_SELF,
    PRCTL,
    SECCOMP,
    without,
)
from wg4netnsd.engine.engine import BINARY

pytestmark = pytest.mark.distribution

LACK = "Landlock: operation not permitted"
BY_PRCTL = ["PR_SET_DUMPABLE", "PR_SET_NO_NEW_PRIVS"]
LACKS = [
    (LANDLOCK_CREATE_RULESET, errno.ENOSYS, ["Landlock"]),
    (LANDLOCK_CREATE_RULESET, errno.EOPNOTSUPP, ["Landlock"]),
    (LANDLOCK_CREATE_RULESET, errno.EPERM, ["Landlock"]),
    (LANDLOCK_RESTRICT_SELF, errno.EPERM, ["Landlock"]),
    (SECCOMP, errno.ENOSYS, ["seccomp"]),
    (SECCOMP, errno.EPERM, ["seccomp"]),
    (PRCTL, errno.EPERM, BY_PRCTL),
]


@pytest.mark.parametrize(("call", "error", "parts"), LACKS)
def test_it_does_without_and_tells(call: int, error: int, parts: list[str], tmp_path: Path) -> None:
    process, handover, events = waiting_engine(*without(call, error), BINARY)
    with process, handover, events:
        serve_uapi(handover, tmp_path / "uapi")
        with connect(tmp_path / "uapi") as client:
            assert ask(client, "get=1\n\n").endswith("errno=0\n\n")
        if parts != BY_PRCTL:
            with pytest.raises(PermissionError):  # the rest holds
                os.readlink(f"/proc/{process.pid}/exe")
        process.kill()
        timers, *told = events.read().decode().splitlines()
    assert timers.startswith("timers ")
    assert [line.split(":")[0] for line in told] == [f"lacks {part}" for part in parts]
    reason = told[0].partition(": ")[2]
    assert reason == os.strerror(error).lower()


def test_one_that_lacks_nothing_tells_nothing(tmp_path: Path) -> None:
    process, handover, events = waiting_engine(BINARY)
    with process, handover, events:
        serve_uapi(handover, tmp_path / "uapi")
        with connect(tmp_path / "uapi") as client:
            ask(client, "get=1\n\n")
        process.kill()
        assert len(events.read().splitlines()) == 1


def test_doctor_says_it() -> None:
    found = doctor.ask(*without(LANDLOCK_CREATE_RULESET))
    assert found["kernel"].status == "note"
    assert found["engine"].status == "note"
    assert f"its sandbox lacks {LACK}" in found["engine"].found
    assert doctor.problems(found) == doctor.problems(doctor.ask())


def test_the_daemon_says_it(installed: UserManager, namespace: MakeNamespace, stage: Stage) -> None:
    journal = Journal()
    with (
        changed(installed, "SystemCallFilter=~landlock_create_ruleset"),
        Client(installed.address) as client,
        tunnel(client, namespace(), stage.conf(0), name="one"),
        tunnel(client, namespace(), stage.conf(1), name="two"),
    ):
        assert json.loads(client.manager("Describe"))["EngineLacks"] == [LACK]
        assert doctor.ask()["daemon"].status == "note"
        assert f"its engines' sandbox lacks {LACK}" in doctor.ask()["daemon"].found
        said = [line for line in journal.messages() if LACK in line]
        assert said == [f"engines run without {LACK}"]


def test_nothing_is_lacking_otherwise(daemon: Daemon, client: Client) -> None:
    assert client.get(ROOT, "EngineLacks", MANAGER) == []
