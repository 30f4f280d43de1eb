"""What is inside of a release: a CycloneDX list of packages, their versions and licences.

python -m packaging_tools.inventory VERSION DIRECTORY    writes it beside the packages there
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from build import go_of_path, go_of_pypi
from packaging_tools.debian import LIBRARY

ENGINE: Final = LIBRARY / "wg4netnsd/bin/wireguard-go"
GO_LICENCES: Final = {"golang.org/x/": "BSD-3-Clause", "golang.zx2c4.com/wireguard": "MIT"}
"""By the beginning of a module's path; wireguard-go/LICENSE* are their texts."""

_CLASSIFIERS: Final = {
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
}


def main() -> None:
    version, directory = sys.argv[1], Path(sys.argv[2])
    found: dict[str, Component] = {}
    for package in sorted(directory.glob("*.deb")):
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["dpkg-deb", "--extract", package, scratch], check=True)
            for component in (*_python(Path(scratch, LIBRARY)), *_go(Path(scratch, ENGINE))):
                found[str(component.purl)] = component
    bom = Bom(components=found.values())
    ours = _component("wg4netnsd", version, "MIT", "pypi", ComponentType.APPLICATION)
    bom.metadata.component = ours
    bom.metadata.timestamp = datetime.fromtimestamp(_changelog_day(version), UTC)
    bom.serial_number = uuid5(NAMESPACE_URL, f"wg4netnsd {version}")  # the same for the same
    bom.register_dependency(ours, found.values())
    output = directory / f"wg4netnsd-{version}.cdx.json"
    output.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
    print(output)


def _changelog_day(version: str) -> float:
    text = Path("CHANGELOG.md").read_text()
    found = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", text, re.MULTILINE)
    if not found:
        raise SystemExit(f"CHANGELOG.md has no date of {version}")
    return datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp()


def _python(library: Path) -> Iterator[Component]:
    for directory in library.glob("*.dist-info"):
        distribution = importlib.metadata.Distribution.at(directory)
        if distribution.name != "wg4netnsd":
            yield _component(
                distribution.name, distribution.version, _licence(distribution), "pypi"
            )


def _licence(distribution: importlib.metadata.Distribution) -> str:
    """Return an SPDX expression. Raises SystemExit if the package has none that we know."""
    metadata: Any = distribution.metadata
    if expression := metadata["License-Expression"]:
        return str(expression)
    for classifier in metadata.get_all("Classifier", []):
        if classifier in _CLASSIFIERS:
            return _CLASSIFIERS[classifier]
    raise SystemExit(f"{distribution.name} has no licence that inventory.py knows")


def _go(engine: Path) -> Iterator[Component]:
    """The modules in a Go program, as `go version -m` lists them, and Go itself."""
    command = (go_of_path() or go_of_pypi(), "version", "-m", engine)
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    first, *lines = shown.splitlines()
    go = first.rpartition("go")[2]
    yield _component("std", go, "BSD-3-Clause", "golang")
    for line in lines:
        match line.split():
            case ["dep" | "mod", path, version, *_]:
                licence = next(
                    (name for start, name in GO_LICENCES.items() if path.startswith(start)), None
                )
                if licence is None:
                    raise SystemExit(f"{path} has no licence that inventory.py knows")
                yield _component(path, version, licence, "golang")


def _component(
    name: str,
    version: str,
    licence: str,
    kind: str,
    type_: ComponentType = ComponentType.LIBRARY,
) -> Component:
    return Component(
        name=name,
        version=version,
        type=type_,
        licenses=[LicenseFactory().make_from_string(licence)],
        purl=PackageURL(kind, None, name, version),
        bom_ref=f"{kind}:{name}@{version}",
    )


if __name__ == "__main__":
    main()
