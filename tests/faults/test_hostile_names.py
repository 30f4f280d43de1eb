"""Names of files that a shell takes for commands, in the directories that completion reads."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.shells import bash, fish, zsh

pytestmark = pytest.mark.distribution

HARMLESS = "office"
NAMES = (
    "$(touch ran)",
    "`touch ran`",
    "x;touch ran",
    "*",
    "a b",
    "x\ntouch ran",
    "~",
    "<(touch ran)",
)


@pytest.mark.parametrize("shell", [bash, zsh, fish])
def test_completion_runs_nothing(
    shell: Callable[[list[str]], list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are data, also once they are on the command line, where bash does not quote them."""
    known, here = tmp_path / ".config/wg4netnsd", tmp_path / "here"
    for directory in (known, here):
        directory.mkdir(parents=True)
        for name in (HARMLESS, *NAMES):
            (directory / f"{name}.conf").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.chdir(here)
    for line in ("run ", "up ", "attach --pid 1 ", "reload office "):
        ((*offered,),) = shell([f"wg4netnsctl {line}"])
        assert HARMLESS in [each.strip() for each in offered]
        if shell is bash:  # what is not a file goes on the command line without quotes
            names = {each for each in offered if not each.endswith(".conf")}
            assert names - {"x"} == {HARMLESS}  # x: half of a file's name
    assert not list(tmp_path.rglob("ran"))
