"""`wg4netnsctl doctor`: what this machine lacks for tunnels, and what to do about it.

It looks and tries, in namespaces of its own, and changes nothing: nobody is started for it, and
nothing is left behind.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from wg4netnsd.ctl import (
    checks_daemon,
    checks_machine,
    checks_namespaces,
    checks_programs,
    checks_session,
)
from wg4netnsd.ctl.busprobe import Unanswered
from wg4netnsd.ctl.finding import COMMAND, STATUSES, Finding, problem

EXIT_WELL: Final = 0
EXIT_PROBLEM: Final = 1

WIDTH: Final = 80
ADVICE: Final = 9 * " "
"""Before each line of it: as far in as the titles are."""

COLOURS: Final = {"ok": 32, "note": 33, "problem": 31}


class Check(NamedTuple):
    """`id` is a part of the interface: it stays."""

    id: str
    title: str
    look: Callable[[], Finding]


CHECKS: Final = (
    Check("host", "host", checks_namespaces.host),
    Check("kernel", "kernel", checks_machine.kernel),
    Check("user-namespaces", "user namespaces", checks_namespaces.user_namespaces),
    Check("proc", "/proc", checks_namespaces.proc),
    Check("tun", "/dev/net/tun", checks_namespaces.tun),
    Check("ipv6", "IPv6", checks_machine.ipv6),
    Check("ipv6-endpoints", "IPv6 endpoints", checks_machine.ipv6_endpoints),
    Check("clock", "clock", checks_machine.clock),
    Check("open-files", "open files", checks_machine.open_files),
    Check("engine", "engine", checks_programs.engine),
    Check("runtime-directory", "runtime directory", checks_session.runtime_directory),
    Check("session-bus", "session bus", checks_session.session_bus),
    Check("activation", "activation", checks_daemon.activation),
    Check("user-manager", "user manager", checks_session.user_manager),
    Check("unit", "unit", checks_daemon.unit),
    Check("daemon", "daemon", checks_daemon.daemon),
    Check("linger", "linger", checks_session.linger),
    Check("busctl", "busctl", checks_programs.busctl),
    Check("wg", "wg", checks_programs.wg),
    Check("subordinate-ids", "subordinate ids", checks_programs.subordinate_ids),
)

_TITLES: Final = max(len(check.title) for check in CHECKS)


def run(as_json: bool) -> int:
    """Print what is found; returns the exit status."""
    findings = [(check, _look(check)) for check in CHECKS]
    if as_json:
        print(json.dumps([_object(check, finding) for check, finding in findings]))
    else:
        colours = _wants_colours()
        for check, finding in findings:
            print(*_lines(check, finding, colours), sep="\n", flush=True)
        print(_summary([finding for _, finding in findings]))
    failed = any(finding.status == "problem" for _, finding in findings)
    return EXIT_PROBLEM if failed else EXIT_WELL


def _look(check: Check) -> Finding:
    """Whatever becomes of it: on a strange machine the others are worth the more."""
    try:
        return check.look()
    except Unanswered as error:
        return problem(str(error), "See to 'session bus' first.")
    except Exception as error:
        return problem(
            f"the check itself failed: {type(error).__name__}: {error}",
            "That is a defect of wg4netnsctl's. Please report it, with what this prints:",
            f"{COMMAND}uname -a; wg4netnsctl doctor --json",
        )


def _object(check: Check, finding: Finding) -> dict[str, str | None]:
    return {"id": check.id, "title": check.title, **finding._asdict()}


# ---------------------------------------------------------------- for people


def _lines(check: Check, finding: Finding, colours: bool) -> Iterator[str]:
    head = f"{finding.status:<7}  {check.title:<{_TITLES}}  "
    first, *others = textwrap.wrap(
        finding.found, WIDTH, initial_indent=head, subsequent_indent=len(head) * " ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    if colours:
        first = first.replace(finding.status, _paint(finding.status), 1)
    yield first
    yield from others
    for line in (finding.advice or "").splitlines():
        if line.startswith(COMMAND):
            yield f"{ADVICE}{line}"
        else:
            yield from textwrap.wrap(
                line, WIDTH, initial_indent=ADVICE, subsequent_indent=ADVICE,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip


def _summary(findings: list[Finding]) -> str:
    """Such as "1 problem, 2 notes"."""
    counts = {
        status: sum(finding.status == status for finding in findings)
        for status in reversed(STATUSES)
        if status != "ok"
    }
    told = [f"{n} {status}{'s' if n > 1 else ''}" for status, n in counts.items() if n]
    return ", ".join(told) or "all is well"


def _wants_colours() -> bool:
    """https://no-color.org"""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def _paint(status: str) -> str:
    return f"\x1b[{COLOURS[status]}m{status}\x1b[m"
