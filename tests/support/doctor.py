"""`wg4netnsctl doctor --json`."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from support.ctl import PROGRAM


class Finding(NamedTuple):
    id: str
    title: str
    status: str
    found: str
    advice: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of advice to copy."""
        lines = (self.advice or "").splitlines()
        return [line.strip() for line in lines if line.startswith("    ")]


def ask(
    *enter: str, env: Mapping[str, str] | None = None, program: Sequence[str] = (str(PROGRAM),)
) -> dict[str, Finding]:
    """Run it with the prefix `enter` and these variables; an empty one is unset. Returns its
    findings by the checks' ids."""
    environment = {name: value for name, value in (os.environ | (env or {})).items() if value}
    done = subprocess.run(
        [*enter, *program, "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return read(done.stdout, done.returncode, done.stderr)


def read(output: str, status: int, errors: str = "") -> dict[str, Finding]:
    """Parse its output; its status must match."""
    assert errors == ""
    findings = [Finding(**each) for each in json.loads(output)]
    assert status == any(each.status == "problem" for each in findings)
    for each in findings:
        assert each.status in ("ok", "note", "problem")
        assert (each.advice is None) == (each.status == "ok"), each
        assert "the check itself failed" not in each.found, each
    return {each.id: each for each in findings}


def problems(findings: Mapping[str, Finding]) -> set[str]:
    return {each.id for each in findings.values() if each.status == "problem"}
