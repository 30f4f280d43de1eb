"""`wg4netnsctl doctor`: find what this machine lacks for tunnels, and advise what to do about it.

It looks and tries, in namespaces of its own. It changes and starts nothing, and leaves nothing
behind.
"""

from __future__ import annotations

import json
import textwrap
from argparse import Namespace as Arguments
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from wg4netnsd.ctl.colours import GREEN, RED, YELLOW, paint
from wg4netnsd.ctl.doctor import daemon, machine, namespaces, programs, session
from wg4netnsd.ctl.doctor.finding import COMMAND, Blocked, Finding, note, problem
from wg4netnsd.ctl.failure import Failure

WIDTH: Final = 80
COLOURS: Final = {"ok": GREEN, "note": YELLOW, "problem": RED}


class Check(NamedTuple):
    id: str
    """A part of the command's interface: it does not change."""
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

_TITLE_WIDTH: Final = max(len(check.title) for check in CHECKS)
_INDENT: Final = " " * len("problem  ")


def run(arguments: Arguments) -> int:
    """Print the findings; the exit status is 1 if one of them is a problem."""
    findings = [(check, _look(check)) for check in CHECKS]
    if arguments.json:
        objects = [{"id": c.id, "title": c.title, **finding._asdict()} for c, finding in findings]
        print(json.dumps(objects))
    else:
        for check, finding in findings:
            print(*_lines(check.title, finding), sep="\n")
        print(_summary([finding.status for _, finding in findings]))
    return int(any(finding.status == "problem" for _, finding in findings))


def _look(check: Check) -> Finding:
    """Run a check. One that fails does not keep the others from running."""
    try:
        return check.look()
    except Blocked as first:
        return note("can't be checked yet").advise(f"Fix '{first}' first.")
    except Failure as error:
        return problem(str(error)).advise("Fix 'session bus' first.")
    except Exception as error:
        found = f"the check itself failed: {type(error).__name__}: {error}"
        return problem(found).advise("""This is a bug in wg4netnsctl. Please report it, with the
            output of:
            $ uname -a; wg4netnsctl doctor --json""")


def _lines(title: str, finding: Finding) -> Iterator[str]:
    head = f"{finding.status:<7}  {title:<{_TITLE_WIDTH}}  "
    first, *others = _wrap(finding.found, head, " " * len(head))
    yield first.replace(finding.status, paint(finding.status, COLOURS[finding.status]), 1)
    yield from others
    for line in (finding.advice or "").splitlines():
        is_copied = line.startswith(COMMAND)
        yield from [_INDENT + line] if is_copied else _wrap(line, _INDENT, _INDENT)


def _wrap(text: str, first: str, others: str) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, first, others)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return wrapper.wrap(text)


def _summary(statuses: list[str]) -> str:
    """Such as "1 problem, 2 notes"."""
    counts = {status: statuses.count(status) for status in ("problem", "note")}
    shown = [f"{n} {status}{'s' if n > 1 else ''}" for status, n in counts.items() if n]
    return ", ".join(shown) or "all is well"
