"""The checks of the daemon: can it be started, does it run, is it this installation's?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wg4netnsd import __version__, names
from wg4netnsd.ctl.doctor.finding import (
    REINSTALL,
    RESTART,
    SET_UP,
    Blocked,
    Finding,
    note,
    ok,
    problem,
)
from wg4netnsd.ctl.doctor.session import MANAGER, SYSTEMD, ask, get_all, has_owner, has_systemd
from wg4netnsd.ctl.failure import Failure
from wg4netnsd.ctl.setup import UNIT, find_program


def activation() -> Finding:
    (activatable,) = ask(*names.BUS, "ListActivatableNames")
    if names.BUS_NAME in activatable:
        return ok(f"a call to {names.BUS_NAME} starts the daemon")
    return problem(f"the bus does not know how to start {names.BUS_NAME}").advise(f"""This writes
        the file that says it, and the unit:
        {SET_UP}""")


# ---------------------------------------------------------------- the unit


def unit() -> Finding:
    try:
        if not has_systemd():
            raise Blocked("user manager")
        # Loading a unit changes nothing, and systemd soon forgets it.
        (path,) = ask(*MANAGER, "LoadUnit", "s", UNIT)
        its = get_all(SYSTEMD, path, f"{SYSTEMD}.Unit")
        its |= get_all(SYSTEMD, path, f"{SYSTEMD}.Service")
    except Failure:
        raise Blocked("user manager") from None
    return (
        _not_loaded(its)
        or _not_running(its)
        or _outdated(its)
        or ok(f"{_short(its['FragmentPath'])}, {its['ActiveState']}")
    )


def _not_loaded(its: dict[str, Any]) -> Finding | None:
    match its["LoadState"]:
        case "loaded":
            return None
        case "not-found":
            return problem(f"{UNIT} is not installed").advise(f"""This writes it, with the path of
                this installation's daemon:
                {SET_UP}""")
        case "masked":
            return problem(f"{UNIT} is masked, so nothing starts it").advise(f"""Unmask it:
                $ systemctl --user unmask {UNIT}""")
        case state:
            _, message = its["LoadError"]
            found = f"{UNIT} can't be loaded: {message or state}"
            return problem(found).advise(f"""A line of the unit, or of a drop-in, is wrong:
                $ systemctl --user cat {UNIT}
                And this writes the unit again:
                {SET_UP}""")


def _not_running(its: dict[str, Any]) -> Finding | None:
    if missing := _missing_program(_program(its)):
        written = _short([its["FragmentPath"], *its["DropInPaths"]][-1])
        found = f"it would start {missing}, which does not exist"
        return problem(found).advise(f"""Another installation wrote {written}. If that is a drop-in,
            remove it. Then:
            {SET_UP}""")
    if its["ActiveState"] != "failed":
        return None
    if its["Result"] == "start-limit-hit":
        found = "it was started so often that systemd refuses to for a minute"
    else:
        found = f"it failed: {its['Result']}, status {its['ExecMainStatus']}"
        found += f", after {its['NRestarts']} restarts" if its["NRestarts"] else ""
    return problem(found).advise(f"""The first error in its log tells why; then start it again:
        $ journalctl --user --unit=wg4netnsd --lines=20
        $ systemctl --user reset-failed wg4netnsd
        {RESTART}""")


def _outdated(its: dict[str, Any]) -> Finding | None:
    if its["NeedDaemonReload"]:
        return note("its files are newer than what systemd has read").advise("""Have them read:
            $ systemctl --user daemon-reload""")
    try:
        ours = find_program("wg4netnsd")
    except Failure as error:
        return problem(str(error)).advise(REINSTALL)
    if os.path.realpath(_program(its)) == os.path.realpath(ours):
        return None
    found = f"it starts {_program(its)}, not this installation's {ours}"
    return note(found).advise(f"""If that is not what you want:
        {SET_UP}
        {RESTART}""")


def _program(its: dict[str, Any]) -> str:
    """The program of ExecStart=; empty where a drop-in has removed it."""
    return str(its["ExecStart"][0][0]) if its["ExecStart"] else ""


def _short(path: str) -> str:
    """The path with the home directory as ~."""
    home = os.path.expanduser("~")
    return path.replace(home, "~", 1) if path.startswith(f"{home}/") else path


def _missing_program(program: str) -> str:
    """The program, or its interpreter, such as a removed Python's; empty if neither is missing."""
    if not os.access(program, os.X_OK):
        return program or "nothing"
    with Path(program).open("rb") as file:
        first = file.readline(256)
    interpreter = first[2:].split()[0].decode() if first.startswith(b"#!") else program
    return "" if os.access(interpreter, os.X_OK) else interpreter


# ---------------------------------------------------------------- the daemon


def daemon() -> Finding:
    if not has_owner(names.BUS_NAME):
        return ok("is not running; the first call starts it")
    manager = (names.BUS_NAME, names.ROOT_PATH, names.MANAGER)
    try:
        its = get_all(*manager)
        (tunnels,) = ask(*manager, "ListTunnels")
        errors = {
            name: get_all(names.BUS_NAME, path, names.TUNNEL)["LastError"][1]
            for name, path, state in tunnels
            if state == "failed"
        }
    except Failure as error:
        return problem(f"it does not answer: {error}").advise(f"""systemd replaces a daemon that has
            hung for half a minute. This does so now; tunnels stay up:
            {RESTART}""")
    found = (
        f"version {its['Version']}, wireguard-go {its['EngineVersion']}, "
        f"{len(tunnels)} of {its['MaxTunnels']} tunnels"
        + ("" if "survival" in its["Features"] else ", which end with it")
    )
    if errors:
        failed = "; ".join(f"{name}: {error}" for name, error in errors.items())
        restarts = "\n".join(f"$ wg4netnsctl restart {name}" for name in errors)
        return problem(f"{found}; failed: {failed}").advise(f"""When the cause is fixed, restart
            each:
            {restarts}""")
    if its["Version"] != __version__:
        found += f"; wg4netnsctl's version is {__version__}"
        return note(found).advise(f"""Replace it with the installed one; tunnels stay up:
            {RESTART}""")
    if its["EngineLacks"]:
        found += f"; its engines' sandbox lacks {', '.join(its['EngineLacks'])}"
        return note(found).advise(f"""Engines run without it. If the kernel has it, a drop-in of the
            unit may forbid it:
            $ systemctl --user cat {UNIT}""")
    return ok(found)
