"""`wg4netnsctl doctor`: what this machine lacks for tunnels, and what to do about it.

It looks and tries, in namespaces of its own, and changes nothing: nobody is started for it, and
nothing is left behind.
"""

from __future__ import annotations

import json
import textwrap
from argparse import Namespace as Arguments
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from wg4netnsd.ctl.colours import GREEN, RED, YELLOW, paint
from wg4netnsd.ctl.doctor import daemon, machine, namespaces, programs, session
from wg4netnsd.ctl.doctor.busprobe import Unanswered
from wg4netnsd.ctl.doctor.finding import COMMAND, STATUSES, Finding, NotYet, after, problem

EXIT_WELL: Final = 0
EXIT_PROBLEM: Final = 1

WIDTH: Final = 80
ADVICE: Final = 9 * " "
"""Before each line of it: as far in as the titles are."""

COLOURS: Final = {"ok": GREEN, "note": YELLOW, "problem": RED}


class Check(NamedTuple):
    """`id` is a part of the interface: it stays."""

    id: str
    title: str
    look: Callable[[], Finding]


CHECKS: Final = (
    Check("host", "host", namespaces.host),
    Check("kernel", "kernel", machine.kernel),
    Check("user-namespaces", "user namespaces", namespaces.user_namespaces),
    Check("proc", "/proc", namespaces.proc),
    Check("tun", "/dev/net/tun", namespaces.tun),
    Check("ipv6", "IPv6", machine.ipv6),
    Check("ipv6-endpoints", "IPv6 endpoints", machine.ipv6_endpoints),
    Check("clock", "clock", machine.clock),
    Check("open-files", "open files", machine.open_files),
    Check("engine", "engine", programs.engine),
    Check("runtime-directory", "runtime directory", session.runtime_directory),
    Check("session-bus", "session bus", session.session_bus),
    Check("activation", "activation", daemon.activation),
    Check("user-manager", "user manager", session.user_manager),
    Check("unit", "unit", daemon.unit),
    Check("daemon", "daemon", daemon.daemon),
    Check("linger", "linger", session.linger),
    Check("busctl", "busctl", programs.busctl),
    Check("wg", "wg", programs.wg),
    Check("subordinate-ids", "subordinate ids", programs.subordinate_ids),
)

_TITLES: Final = max(len(check.title) for check in CHECKS)


def run(arguments: Arguments) -> int:
    """Print what is found; returns the exit status."""
    findings = [(check, _look(check)) for check in CHECKS]
    if arguments.json:
        print(json.dumps([_object(check, finding) for check, finding in findings]))
    else:
        for check, finding in findings:
            print(*_lines(check, finding), sep="\n", flush=True)
        print(_summary([finding for _, finding in findings]))
    failed = any(finding.status == "problem" for _, finding in findings)
    return EXIT_PROBLEM if failed else EXIT_WELL


def _look(check: Check) -> Finding:
    """Whatever becomes of it: on a strange machine the others are worth the more."""
    try:
        return check.look()
    except NotYet as first:
        return after(str(first))
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


def _lines(check: Check, finding: Finding) -> Iterator[str]:
    head = f"{finding.status:<7}  {check.title:<{_TITLES}}  "
    first, *others = textwrap.wrap(
        finding.found, WIDTH, initial_indent=head, subsequent_indent=len(head) * " ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    first = first.replace(finding.status, paint(finding.status, COLOURS[finding.status]), 1)
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
