"""The root-owned files that ssh would read."""

import os
from pathlib import Path

import pytest

from wg4netnsd.ctl import sshconfig

ROOTS = Path("/etc/hostname")  # short and readable for all


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ssh's configuration for all users."""
    monkeypatch.setattr(sshconfig, "_SYSTEM", (str(tmp_path / "ssh_config"),))
    monkeypatch.setattr(sshconfig, "_USER", str(tmp_path / "none"))
    return tmp_path / "ssh_config"


def found() -> list[str]:
    return [file.path for file in sshconfig.root_files()]


def test_none(system: Path) -> None:
    assert found() == []
    system.write_text("Host *\n    Port 22\n# Include /etc/hostname\nIncludes /etc/hostname\n")
    assert found() == []


@pytest.mark.parametrize(
    "line",
    ["Include /etc/hostname", "include=/etc/hostname", 'INCLUDE = "/etc/hostname"',
     "Host a\n    Include none /etc/host*ame # the machine's"],
)  # fmt: skip
def test_an_include_of_a_file_of_roots(system: Path, line: str) -> None:
    system.write_text(f"{line}\n")
    (file,) = sshconfig.root_files()
    assert file.path == os.path.realpath(ROOTS)
    assert file.content == ROOTS.read_bytes()
    assert file.mode == ROOTS.stat().st_mode & 0o7777


def test_includes_of_includes_once_each(system: Path, tmp_path: Path) -> None:
    """Our own files, directories and long files are not copied; loops end."""
    system.write_text(f"Include {tmp_path}/*.conf /etc /usr/bin/bash\n")
    (tmp_path / "ours.conf").write_text(f"Include {tmp_path}/ours.conf {tmp_path}/link\n")
    (tmp_path / "link").symlink_to(ROOTS)
    (tmp_path / "more.conf").write_text("Include /etc/hostname\n")
    assert found() == [os.path.realpath(ROOTS)]
