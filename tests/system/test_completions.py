"""The completions that bash, zsh and fish themselves offer for wg4netnsctl."""

import os
import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bus import Client
from support.daemon import Daemon
from support.manager import ctl
from support.namespaces import Namespace
from support.shells import bash, fish, output, zsh
from support.stage import Stage
from wg4netnsd.config.foreign import IGNORABLE, IPV6
from wg4netnsd.ctl.program import parser

pytestmark = pytest.mark.distribution

Offered = Callable[..., list[set[str]]]
"""The words offered for each command line; these lack the first word."""


@pytest.fixture(params=[bash, zsh, fish], ids=lambda shell: shell.__name__)
def offered(request: pytest.FixtureRequest) -> Offered:
    def ask(*lines: str) -> list[set[str]]:
        answers = request.param([f"wg4netnsctl {line}" for line in lines])
        assert len(answers) == len(lines)
        # bash offers the part after the =, fish the whole word.
        return [{each.strip().split("=")[-1] for each in answer} - {""} for answer in answers]

    return ask


def commands() -> dict[str, ArgumentParser]:
    (found,) = (each for each in parser()._actions if isinstance(each, _SubParsersAction))
    return dict(found.choices)


def options(command: ArgumentParser) -> set[str]:
    return {option for action in command._actions for option in action.option_strings}


def test_the_parsers_commands_and_no_others(offered: Offered) -> None:
    assert offered("", "-") == [set(commands()), options(parser())]


def test_the_parsers_options_and_no_others(offered: Offered) -> None:
    names = list(commands())
    for name, found in zip(names, offered(*(f"{name} -" for name in names)), strict=True):
        assert found - {"--"} == options(commands()[name]), name


def test_values(offered: Offered) -> None:
    asked = ("attach --lifetime ", "attach --lifetime=", "up --ignore ", "run --cap ", "wg office ")
    assert offered(*asked) == [
        {"namespace", "persistent"},
        {"namespace", "persistent"},
        {*IGNORABLE, IPV6},
        {"net_admin", "net_raw"},
        {"addconf", "set", "setconf", "show", "showconf", "syncconf"},
    ]


def test_configurations(offered: Offered, home: Path) -> None:
    """Names, configuration files and directories are offered; no other files."""
    for found in offered("run ", "up --json ", "attach --name=x --pid 1 ", "reload office "):
        assert {each.rstrip("/") for each in found} == {"home", "work", "here.conf", "directory"}


def test_files_and_processes(offered: Offered, home: Path) -> None:
    files, processes = offered("attach --netns o", "attach --pid ")
    assert files == {"other.txt"}
    assert str(os.getpid()) in processes


def test_tunnels(
    offered: Offered,
    home: Path,
    daemon: Daemon,
    client: Client,
    namespace: Callable[[], Namespace],
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", daemon.address)
    client.create(namespace(), stage.conf(), name="office")
    many = ("down other ", "monitor other ")
    one = ("exec ", "shell ", "show ", "reload ", "restart ", "wg ")
    assert offered(*many, *one) == [{"office"}] * 8
    for found in offered("shell office ", "restart office "):
        # zsh offers these when nothing else is left.
        assert found <= {"-h", "--help", "--cap", "--trust-root"}


def test_what_is_run_is_completed_as_by_itself(offered: Offered, home: Path) -> None:
    for found in offered("run --name x office -- wg4netns", "exec office -- wg4netns"):
        assert found == {"wg4netnsctl", "wg4netnsd"}


def test_setup_puts_them_where_the_shells_look(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/zsh")
    said = ctl("setup")
    (zshrc,) = re.findall(r"^for zsh, before compinit in ~/.zshrc: (.*)$", said, re.M)
    loaded = ". /usr/share/bash-completion/bash_completion; _completion_loader wg4netnsctl"
    assert "_wg4netnsctl" in output("bash", "-c", f"{loaded}; complete -p wg4netnsctl")
    zsh = f"{zshrc}; autoload -Uz compinit; compinit -D"
    assert output("zsh", "-f", "-c", f"{zsh}; print $_comps[wg4netnsctl]") == "_wg4netnsctl\n"
    assert "restart" in output("fish", "-c", "complete -C 'wg4netnsctl resta'")

    ctl("setup", "--remove")
    assert not [each for each in (home / ".local").rglob("*wg4net*") if each.is_file()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home with configurations, and a working directory."""
    known = tmp_path / ".config/wg4netnsd"
    known.mkdir(parents=True)
    for name in ("home.conf", "work.conf", "old.conf~"):
        (known / name).touch()
    here = tmp_path / "here"
    (here / "directory").mkdir(parents=True)
    for name in ("here.conf", "other.txt"):
        (here / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    return tmp_path
