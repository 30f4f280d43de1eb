"""Imports between packages point only one way, and third parties' packages have one door each."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "wg4netnsd"

LAYERS = (
    {"names", "text"},
    {"errors"},
    {"kernel"},
    {"aio"},
    {"files"},
    {"systemd", "config", "bus", "dns"},
    {"agent"},
    {"gateway"},
    {"engine"},
    {"peers"},
    {"host", "tunnel"},
    {"api"},
    {"ctl"},
    {"daemon"},
    {"__main__"},
)
"""A package imports only those of the layers above it, and itself."""

ONLY_IN = {
    "dbus_next": {"bus/codec.py"},
    "dns": {"dns/messages.py"},
    "h11": {"gateway/http.py"},
    "jeepney": {"ctl/client.py"},
    "pyroute2": {"kernel/pyroute.py"},
    "systemd": {"systemd/journal.py", "systemd/notify.py"},
}
"""Third parties' packages that have one door."""


def files() -> Iterator[tuple[Path, str]]:
    """Yield every source file with the package that it is in."""
    for path in PACKAGE.rglob("*.py"):
        yield path, path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides what it imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_packages_import_only_what_is_above_them() -> None:
    level = {package: number for number, layer in enumerate(LAYERS) for package in layer}
    seen = set()
    for path, package in files():
        seen.add(package)
        for name in imports(path):
            top, _, rest = name.partition(".")
            used = rest.partition(".")[0]
            if top == "wg4netnsd" and used not in ("", "__version__", package):
                assert level[used] < level[package], f"{path} imports {name}"
    assert seen == level.keys() | {"__init__"}


def test_third_parties_have_one_door() -> None:
    doors = {package: set[str]() for package in ONLY_IN}
    for path, _ in files():
        for name in imports(path):
            if (top := name.partition(".")[0]) in doors:
                doors[top].add(str(path.relative_to(PACKAGE)))
    assert doors == ONLY_IN


def test_no_file_holds_two_ideas() -> None:
    for path, _ in files():
        assert len(path.read_text().splitlines()) <= 400, path.name
