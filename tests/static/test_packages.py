"""The Debian packages have every Python package that we import: the release's, or their own."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from static.test_locks import PROJECT, lock_of

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from packaging_tools import debian

DEBIAN_NAMES = {"systemd-python": "python3-systemd"}

releases = pytest.mark.parametrize("release", debian.RELEASES, ids=lambda each: each.name)


@releases
def test_each_dependency_is_the_releases_or_ours(release: debian.Release) -> None:
    theirs = {re.split(r"[ (]", each)[0]: each for each in release.theirs}
    for dependency in map(Requirement, PROJECT):
        name = DEBIAN_NAMES.get(dependency.name, f"python3-{dependency.name}")
        assert (name in theirs) != (dependency.name in release.ours), dependency.name
        if name in theirs:
            (oldest,) = re.findall(r"\(>= (\S+)\)", theirs[name])
            assert dependency.specifier.contains(oldest), f"{theirs[name]}: {dependency}"


@releases
def test_what_ours_need_in_turn_is_ours_too(release: debian.Release) -> None:
    """The lock names, for each package, those that it is there for."""
    lock = lock_of("test").read_text()
    for entry in re.split(r"^(?=[a-z])", lock, flags=re.MULTILINE):
        name = re.split(r"[=\[ ]", entry, maxsplit=1)[0]
        if "sys_platform == 'win32'" in entry.split("\n")[0]:
            continue
        for parent in re.findall(r"# via (.*)", entry):
            if set(re.split(r", ", parent)) & set(release.ours):
                assert name in release.ours
