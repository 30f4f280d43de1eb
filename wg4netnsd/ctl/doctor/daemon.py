"""`wg4netnsctl doctor`: is the daemon installed, does it run, and is it this installation's?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from wg4netnsd import __version__, names
from wg4netnsd.ctl import setup
from wg4netnsd.ctl.doctor.busprobe import Bus, Unanswered
from wg4netnsd.ctl.doctor.finding import INSTALL_ANEW, Finding, after, note, ok, problem, run
from wg4netnsd.ctl.doctor.session import SYSTEMD, connected
from wg4netnsd.errors import Failed

_SET_UP: Final = run("wg4netnsctl setup")
_LOG: Final = run("journalctl --user --unit=wg4netnsd --lines=20")
_RESTART: Final = run("systemctl --user restart wg4netnsd")


def activation() -> Finding:
    bus = connected()
    (known,) = bus.ask(*names.BUS, "ListActivatableNames")
    if names.BUS_NAME in known:
        return ok(f"a call to {names.BUS_NAME} starts the daemon")
    return problem(
        f"the bus does not know how to start {names.BUS_NAME}",
        "Write the file that tells it, and the unit:",
        _SET_UP,
    )


# ---------------------------------------------------------------- the unit


def unit() -> Finding:
    bus = connected()
    try:
        if not bus.has_owner(SYSTEMD):
            return after("user manager")
        its = _unit_properties(bus)
    except Unanswered:
        return after("user manager")
    return (
        _what_keeps_it_from_loading(its)
        or _what_keeps_it_from_running(its)
        or _what_is_outdated(its)
        or ok(f"{_short(its['FragmentPath'])}, {its['ActiveState']}")
    )


def _unit_properties(bus: Bus) -> dict[str, Any]:
    """Of the unit and of the service. To load one changes nothing, and systemd soon forgets it."""
    manager = (SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager")
    (path,) = bus.ask(*manager, "LoadUnit", "s", setup.UNIT)
    return bus.properties(SYSTEMD, path, f"{SYSTEMD}.Unit") | bus.properties(
        SYSTEMD, path, f"{SYSTEMD}.Service"
    )


def _what_keeps_it_from_loading(its: dict[str, Any]) -> Finding | None:
    match its["LoadState"]:
        case "loaded":
            return None
        case "not-found":
            return problem(
                f"{setup.UNIT} is not installed",
                "Write it, with the path of this installation's daemon:",
                _SET_UP,
            )
        case "masked":
            return problem(
                f"{setup.UNIT} is masked, so nothing starts it",
                "Lift that:",
                run(f"systemctl --user unmask {setup.UNIT}"),
            )
        case state:
            _, message = its["LoadError"]
            return problem(
                f"{setup.UNIT} can't be loaded: {message or state}",
                "This tells which line is wrong; drop-ins count too:",
                run(f"systemctl --user cat {setup.UNIT}"),
                "And this writes the unit anew:",
                _SET_UP,
            )


def _what_keeps_it_from_running(its: dict[str, Any]) -> Finding | None:
    if missing := _missing_program(_program(its)):
        where = _short([its["FragmentPath"], *its["DropInPaths"]][-1])
        return problem(
            f"it would start {missing}, which is not there",
            f"Another installation wrote {where}. If that is a drop-in, remove it. Then:",
            _SET_UP,
        )
    if its["ActiveState"] != "failed":
        return None
    if its["Result"] == "start-limit-hit":
        found = "it was started so often that systemd does not for a minute"
    else:
        found = f"it has failed: {its['Result']}, status {its['ExecMainStatus']}"
        found += f", after {its['NRestarts']} restarts" if its["NRestarts"] else ""
    return problem(
        found,
        "Its last words, of which the first error tells why; and a new start:",
        _LOG,
        run("systemctl --user reset-failed wg4netnsd"),
        _RESTART,
    )


def _what_is_outdated(its: dict[str, Any]) -> Finding | None:
    if its["NeedDaemonReload"]:
        return note(
            "its files are newer than what systemd has read",
            "Have it read them:",
            run("systemctl --user daemon-reload"),
        )
    try:
        ours = setup.find("wg4netnsd")
    except Failed as error:
        return problem(error.text, *INSTALL_ANEW)
    if os.path.realpath(_program(its)) == os.path.realpath(ours):
        return None
    return note(
        f"it starts {_program(its)}, not this installation's {ours}",
        "If that is not what you want:",
        _SET_UP,
        _RESTART,
    )


def _program(its: dict[str, Any]) -> str:
    """What ExecStart= runs; empty where a drop-in has taken it away."""
    return str(its["ExecStart"][0][0]) if its["ExecStart"] else ""


def _short(path: str) -> str:
    """As a shell writes what is in the home directory."""
    home = os.path.expanduser("~")
    return path.replace(home, "~", 1) if path.startswith(f"{home}/") else path


def _missing_program(program: str) -> str:
    """The program, or its interpreter, as of a virtual environment whose Python is gone."""
    if not os.access(program, os.X_OK):
        return program or "nothing"
    with Path(program).open("rb") as file:
        first = file.readline(256)
    if not first.startswith(b"#!"):
        return ""
    interpreter = first[2:].split()[0].decode()
    return "" if os.access(interpreter, os.X_OK) else interpreter


# ---------------------------------------------------------------- the daemon


def daemon() -> Finding:
    bus = connected()
    if not bus.has_owner(names.BUS_NAME):
        return ok("does not run; the first call starts it")
    try:
        its = bus.properties(names.BUS_NAME, names.ROOT_PATH, names.MANAGER)
        (tunnels,) = bus.ask(names.BUS_NAME, names.ROOT_PATH, names.MANAGER, "ListTunnels")
        failed = {name: _last_error(bus, path) for name, path, s in tunnels if s == "failed"}
    except Unanswered as error:
        return problem(
            f"it does not answer: {error}",
            "systemd replaces one that hangs after half a minute. At once, tunnels stay:",
            _RESTART,
        )
    found = (
        f"version {its['Version']}, wireguard-go {its['EngineVersion']}, "
        f"{len(tunnels)} of {its['MaxTunnels']} tunnels"
        + ("" if "survival" in its["Features"] else ", which end with it")
    )
    if failed:
        named = "; ".join(f"{name}: {error}" for name, error in failed.items())
        return problem(
            f"{found}, of which have failed: {named}",
            "When the reason is gone, revive each:",
            *(run(f"wg4netnsctl restart {name}") for name in failed),
        )
    if its["Version"] != __version__:
        return note(
            f"{found}; wg4netnsctl is of version {__version__}",
            "Have the one that is installed take over; tunnels stay:",
            _RESTART,
        )
    if its["EngineLacks"]:
        return note(
            f"{found}; its engines' sandbox lacks {', '.join(its['EngineLacks'])}",
            "Engines run without it. If the kernel has it, a drop-in of the unit may forbid it:",
            run(f"systemctl --user cat {setup.UNIT}"),
        )
    return ok(found)


def _last_error(bus: Bus, path: str) -> str:
    _, message = bus.properties(names.BUS_NAME, path, names.TUNNEL)["LastError"]
    return str(message)
