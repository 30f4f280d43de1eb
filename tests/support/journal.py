"""This user's journal on the stage, read as people read it: by journalctl."""

import json
import subprocess
import uuid
from typing import Any

import systemd.journal

from support.processes import wait_for


class Journal:
    """What has been logged since this object was made."""

    def __init__(self) -> None:
        self._since = self._mark()

    def entries(self, *arguments: str, **fields: object) -> list[dict[str, Any]]:
        """Those with these fields, the oldest first: entries("--user-unit=x", TUNNEL="office").

        All are there that were sent by the native protocol before this call.
        """
        self._mark()
        matches = (f"{name}={value}" for name, value in fields.items())
        # Not by --after-cursor: journalctl 252 skips two of the matching entries instead of one.
        return [each for each in _journalctl(*arguments, *matches) if _number(each) > self._since]

    def messages(self, *arguments: str, **fields: object) -> list[str]:
        return [str(each["MESSAGE"]) for each in self.entries(*arguments, **fields)]

    def _mark(self) -> int:
        """Wait until journald has read its socket up to here, where senders queue up in order."""
        mark = uuid.uuid4().hex
        systemd.journal.send("", SYSLOG_IDENTIFIER="mark", MARK=mark)
        return _number(wait_for(lambda: _journalctl(f"MARK={mark}"), "journald reads")[0])


_NONE_YET = "No journal files were opened due to insufficient permissions."
"""This user has no journal, and there is root's."""


def _journalctl(*arguments: str) -> list[dict[str, Any]]:
    """What it shows; nothing also where this user has no journal yet."""
    command = ["journalctl", "--user", "--quiet", "--all", "--output=json", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0 or shown.stderr.strip() in ("", _NONE_YET), shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def _number(entry: dict[str, Any]) -> int:
    """The entry's, ascending through all of one journald's files (sd_journal_get_cursor)."""
    cursor = dict(part.split("=") for part in entry["__CURSOR"].split(";"))
    return int(cursor["i"], 16)
