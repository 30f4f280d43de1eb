"""`wg4netnsctl doctor`: its findings where all is well, and its layout."""

import contextlib
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

import wg4netnsd
from support.bus import Bus
from support.buses import ON_BOTH
from support.doctor import PROGRAM, ask, problems
from support.manager import SHIPPED, UNIT, UserManager
from support.processes import of_program
from wg4netnsd.ctl import doctor
from wg4netnsd.ctl.doctor import finding

pytestmark = [pytest.mark.long, pytest.mark.distribution]

SHORT = f"~/{SHIPPED.relative_to(Path.home())}"
PAGE = Path(__file__).parents[2] / "docs/wg4netnsctl.1"


# ---------------------------------------------------------------- all is well


@ON_BOTH
def test_nothing_is_amiss_on_the_stage(installed: UserManager) -> None:
    found = ask()
    assert problems(found) == set()
    assert found["unit"].found == f"{SHORT}, inactive"
    assert found["session-bus"].found == f"unix:path={installed.runtime}/bus"
    assert found["daemon"].found.startswith("is not running")
    assert re.fullmatch(r"wireguard-go v[\d.]+, static, .*", found["engine"].found)
    # It started nothing and left nothing behind.
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
    (keys,) = {frozenset(each) for each in json.loads(output)}
    assert keys == {"id", "title", "status", "found", "advice"}
