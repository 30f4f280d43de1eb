"""What a benchmark has found, as it is kept: docs/performance/WHAT.json.

    {"what": …, "date": …, "machine": {…}, "versions": {…}, "tables": […]}

Every value measured is kept, in the order of measuring, with four significant digits; each row is
one line of the file, so that one sees in a diff what has changed.
"""

import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from os import cpu_count
from pathlib import Path
from typing import Any

import wg4netnsd

ROOT = Path(__file__).parent.parent.parent

PACKAGES = ("dbus-daemon", "iperf3", "openssl", "passt", "slirp4netns", "systemd")
"""The distribution's, whose versions are told."""


@dataclass(frozen=True)
class Table:
    title: str
    """As "TCP up, 1 stream, MTU 1420"."""
    unit: str
    """As "Gbit/s", "ms", "MiB", "CPU-s/GB", "calls/s"."""
    rows: Mapping[str, Sequence[float]]
    """The contenders' names, each with every value measured, in order."""
    reference: str | None = None
    """The row that ratios are against."""
    axis: str = ""
    """Where the rows are one contender at growing sizes: what grows, as "tunnels"; the rows' names
    are then numbers."""


@dataclass(frozen=True)
class Recording:
    what: str
    """The benchmark's name."""
    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    tables: Sequence[Table]


def recording(what: str, tables: Sequence[Table]) -> Recording:
    """Of here and now."""
    return Recording(what, date.today().isoformat(), machine(), versions(), tables)


# ---------------------------------------------------------------- JSON


def dump(recording: Recording) -> str:
    text = json.dumps(_rounded(asdict(recording)), indent=1, ensure_ascii=False)
    numbers = r"\[\s+([-+.\de]+(?:,\s+[-+.\de]+)*)\s+\]"
    return re.sub(numbers, lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def load(text: str) -> Recording:
    fields: dict[str, Any] = json.loads(text)
    return Recording(**fields | {"tables": [Table(**each) for each in fields["tables"]]})


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
        case _:
            return value


# ---------------------------------------------------------------- where it was measured


def machine() -> dict[str, str]:
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    assert memory
    return {
        "CPU": cpu[1] if cpu else platform.machine(),  # arm64 tells no model
        "cores": str(cpu_count()),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB",
        "kernel": platform.release().partition("-")[0],
    }


def versions() -> dict[str, str]:
    """Of what is measured, what it is built with, and what stands beside it."""
    pinned = re.search(r"wireguard v(\S+)", (ROOT / "wireguard-go/go.mod").read_text())
    assert pinned
    return {
        "Python": platform.python_version(),
        "wireguard-go": pinned[1],
        "Go": _go(),
        **dict(
            line.split()
            for line in _output(
                "dpkg-query", "-Wf", "${Package} ${Version}\n", *PACKAGES
            ).splitlines()
        ),
    }


def _go() -> str:
    """What the engine was built with."""
    engine = Path(wg4netnsd.__file__).parent / "bin/wireguard-go"
    return _output("go", "version", str(engine)).split()[-1].removeprefix("go")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
