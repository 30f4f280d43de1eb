"""scripts/package, which has its description."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from packaging_tools import debian, python

ROOT: Final = Path(__file__).resolve().parents[2]
ARCHITECTURES: Final = ("x86_64", "aarch64")
KINDS: Final = ("wheel", "sdist", "deb")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/package")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="default: both")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR")
    arguments = parser.parse_args()
    kinds = arguments.kinds or KINDS
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(KINDS)}")
    os.umask(0o022)  # part of what is built
    output: Path = arguments.output
    output.mkdir(exist_ok=True)
    if "sdist" in kinds:
        print(python.build_sdist(ROOT, output))
    for arch in [arguments.arch] if arguments.arch else ARCHITECTURES:
        if {"wheel", "deb"}.isdisjoint(kinds):
            continue
        with tempfile.TemporaryDirectory(prefix="wg4netnsd-package-") as scratch:
            wheel = python.build_wheel(ROOT, arch, Path(scratch))
            if "wheel" in kinds:
                print(shutil.copy(wheel, output))
            if "deb" in kinds:
                for release in debian.RELEASES:
                    print(debian.build(ROOT, wheel, release, arch, output))


if __name__ == "__main__":
    main()
