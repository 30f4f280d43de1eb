"""Recordings of benchmarks: docs/performance/NAME.json.

    {"what": …, "date": …, "machine": {…}, "versions": {…}, "tables": […]}

A recording has every value in the order of measuring, with four significant digits. Each row is one
line of the file, so a diff shows what has changed.
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
"""Distribution packages whose versions a recording has."""


@dataclass(frozen=True)
class Table:
    title: str
    """Such as "TCP up, 1 stream, MTU 1420"."""
    unit: str
    """Such as "Gbit/s", "ms", "MiB", "CPU-s/GB", "calls/s"."""
    rows: Mapping[str, Sequence[float]]
    """Every value, in the order of measuring, by contender."""
    reference: str | None = None
    """The row that ratios compare with."""
    axis: str = ""
    """If the rows are one contender at growing sizes: what grows, such as "tunnels". The names of
    the rows are then numbers."""


@dataclass(frozen=True)
class Recording:
    what: str
    """The benchmark's name."""
    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    tables: Sequence[Table]


def recording(what: str, tables: Sequence[Table]) -> Recording:
    """Make a recording of this machine, with today's date."""
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


# ---------------------------------------------------------------- the machine


def machine() -> dict[str, str]:
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    assert memory
    return {
        "CPU": cpu[1] if cpu else platform.machine(),  # arm64 has no model name here
        "cores": str(cpu_count()),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB",
        "kernel": platform.release().partition("-")[0],
    }


def versions() -> dict[str, str]:
    """Return the versions of what is measured, of what it is built with, and of its peers."""
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
    """Return the version of Go that built the engine."""
    engine = Path(wg4netnsd.__file__).parent / "bin/wireguard-go"
    return _output("go", "version", str(engine)).split()[-1].removeprefix("go")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
