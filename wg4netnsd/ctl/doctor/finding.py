"""The result of a check: a finding, with advice unless all is well."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Status = Literal["ok", "note", "problem"]
"""`note`: something is missing that is not needed, or is worth knowing; `problem`: something will
not work."""

COMMAND: Final = "    "
"""The beginning of a line of advice to copy as it is: a command, or a line for a file."""


class Finding(NamedTuple):
    status: Status
    found: str
    advice: str | None = None
    """Lines: each is a paragraph unless it begins with COMMAND."""

    def advise(self, *texts: str) -> Finding:
        """Add advice. "$ " begins a command and "| " a file's line; the other lines of a text are
        joined to paragraphs."""
        lines: list[str] = []
        for text in texts:
            goes_on = False
            for line in map(str.strip, text.strip().splitlines()):
                is_copied = line.startswith(("$ ", "| "))
                if goes_on and not is_copied:
                    lines[-1] += f" {line}"
                else:
                    lines.append(COMMAND + line[2:] if is_copied else line)
                goes_on = not is_copied
        return self._replace(advice="\n".join(lines))


def ok(found: str) -> Finding:
    return Finding("ok", found)


def note(found: str) -> Finding:
    return Finding("note", found)


def problem(found: str) -> Finding:
    return Finding("problem", found)


class Blocked(Exception):
    """This check can't run until the one with this title passes."""


DMESG: Final = """The kernel's log may tell why:
    $ sudo dmesg"""
RESTART: Final = "$ systemctl --user restart wg4netnsd"
SET_UP: Final = "$ wg4netnsctl setup"
REINSTALL: Final = """Reinstall wg4netnsd the way it was installed, for example in its checkout:
    $ pip install --use-pep517 --force-reinstall ."""
