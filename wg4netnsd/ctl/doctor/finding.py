"""What a check of `wg4netnsctl doctor` has found, and what to do about it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Status = Literal["ok", "note", "problem"]

STATUSES: Final[tuple[Status, ...]] = ("ok", "note", "problem")
"""`note`: something can be had that is not there, or is to be known; `problem`: something will not
work."""

COMMAND: Final = "    "
"""What a line of advice begins with that is to be copied as it is: a command, or a file's line."""


class Finding(NamedTuple):
    status: Status
    found: str
    advice: str | None = None
    """Lines of text, each a paragraph unless it begins with COMMAND."""


def ok(found: str) -> Finding:
    return Finding("ok", found)


def note(found: str, *advice: str) -> Finding:
    return Finding("note", found, "\n".join(advice))


def problem(found: str, *advice: str) -> Finding:
    return Finding("problem", found, "\n".join(advice))


def run(command: str) -> str:
    """A line of advice: a command to be typed."""
    return COMMAND + command


INSTALL_ANEW: Final = (
    "Install wg4netnsd anew, as it was installed, such as in its checkout:",
    run("pip install --use-pep517 --force-reinstall ."),
)


class NotYet(Exception):
    """The title of the check whose problem is to be solved first."""


def after(title: str) -> Finding:
    """Nothing can be said before another check's problem is solved."""
    return note("can't be looked at yet", f"See to '{title}' first.")
