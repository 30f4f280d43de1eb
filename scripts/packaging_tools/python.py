"""Wheels and the sdist, and the wheels of others from PyPI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final
from zipfile import ZipFile

GLIBCS: Final = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
"""Platforms that Debian 12 and later are compatible with (PEP 600)."""


def build_sdist(root: Path, output: Path) -> Path:
    return _hatch(root, "sdist", output)


def build_wheel(root: Path, arch: str, output: Path) -> Path:
    return _hatch(root, "wheel", output, WG4NETNSD_ARCH=arch)


def _hatch(root: Path, target: str, output: Path, **environment: str) -> Path:
    """Build with hatchling, which takes the files' times from SOURCE_DATE_EPOCH."""
    with tempfile.TemporaryDirectory(prefix="wg4netnsd-package-") as scratch:
        command = (sys.executable, "-m", "hatchling", "build", "--target", target)
        subprocess.run(
            [*command, "--directory", scratch],
            cwd=root,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        (built,) = Path(scratch).iterdir()
        return built.replace(output / built.name)


def unpack_pinned(lock: Path, names: Collection[str], python: str, arch: str, into: Path) -> None:
    """Unpack the wheels that `lock` pins for these packages, for CPython `python` on `arch`."""
    with tempfile.TemporaryDirectory(prefix="wg4netnsd-package-") as scratch:
        chosen = Path(scratch, "requirements.txt")
        chosen.write_text("".join(_pins(lock, names)))
        wheels = Path(scratch, "wheels")
        platforms = [f"--platform={glibc}_{arch}" for glibc in GLIBCS]
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        subprocess.run(
            [
                *command,
                *("--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"),
                *("--implementation=cp", f"--python-version={python}", *platforms),
                *(f"--requirement={chosen}", f"--dest={wheels}"),
            ],
            check=True,
        )
        for wheel in sorted(wheels.iterdir()):
            with ZipFile(wheel) as files:
                files.extractall(into)


def _pins(lock: Path, names: Collection[str]) -> list[str]:
    """Return the lock's entries for these packages. Raises ValueError if it lacks one."""
    entries = re.split(r"^(?=[a-z])", lock.read_text(), flags=re.MULTILINE)
    by_name = {re.split(r"[=\[ ]", entry, maxsplit=1)[0]: entry for entry in entries}
    if missing := set(names) - by_name.keys():
        raise ValueError(f"{lock} does not pin {', '.join(sorted(missing))}")
    return [by_name[name] for name in sorted(names)]
