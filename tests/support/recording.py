"""The program of scripts/record: types commands into a shell in tmux, and prints what it shows.

python -m support.recording COMMAND…    an SVG
"""

import io
import os
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Self

from support.manager import installed, user_manager
from support.processes import wait_for
from support.stage import Stage, read

COLUMNS, ROWS = 80, 200
"""More rows than the session may have: a picture does not scroll."""

_PROMPT = {"PS1": r"\[\e[1;32m\]\$ \[\e[0;1m\]", "PS0": r"\e[0m"}
"""What is typed is bold; bash shows PS0 when it has been."""

# As rich's own, without the web font that it would load; it gives each run of text its width, so
# that columns stand below each other in any font.
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
  <title>A terminal session</title>
  <desc>@desc@</desc>
  <style>
    .{unique_id}-matrix {{ font: {char_height}px monospace; }}
    .{unique_id}-title {{ font: bold 18px sans-serif; }}
    {styles}
  </style>
  <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
    </clipPath>
    {lines}
  </defs>
  {chrome}
  <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
  </g>
</svg>
"""


class Terminal:
    """A shell in a tmux of its own."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "tmux"
        size = (f"-x{COLUMNS}", f"-y{ROWS}")
        shell = ("env", *(f"{n}={v}" for n, v in _PROMPT.items()), "bash", "--noprofile", "--norc")
        self._tmux("-f/dev/null", "new-session", "-d", *size, *shell)
        wait_for(self._has_prompt, "the shell's prompt")

    def type(self, command: str) -> None:
        """Returns when the prompt is back."""
        self._tmux("send-keys", "-l", command)
        # Only then: until the shell has read it, the prompt is the old one.
        wait_for(lambda: self._last_line().endswith(command.splitlines()[-1]), "it is typed")
        self._tmux("send-keys", "Enter")
        wait_for(self._has_prompt, f"the end of {command}", 60)

    def _has_prompt(self) -> bool:
        return self._last_line().endswith(("$", "#"))

    def _last_line(self) -> str:
        """Of what is shown, with lines that tmux had to break joined again."""
        return self._tmux("capture-pane", "-p", "-J").rstrip().rpartition("\n")[2]

    def shown(self) -> str:
        """All but the prompt at its end, with escape sequences for colours."""
        return self._tmux("capture-pane", "-p", "-e").rstrip().rpartition("\n")[0]

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-u", *arguments]
        return subprocess.run(
            command, check=True, timeout=30, stdout=subprocess.PIPE, text=True
        ).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")


def draw(shown: str, description: str) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Text.from_ansi(shown), soft_wrap=True)
    template = _SVG.replace("@desc@", escape(description).replace("{", "{{").replace("}", "}}"))
    return console.export_svg(title="", code_format=template, unique_id="session")


def write_configuration(stage: Stage) -> None:
    conf = Path.home() / ".config/wg4netnsd/office.conf"
    conf.parent.mkdir(mode=0o700, parents=True)
    conf.touch(mode=0o600)
    conf.write_text(stage.conf())


def secrets(stage: Stage) -> list[str]:
    return [secret for each in stage.clients for secret in (each.private_key, each.preshared_key)]


def main() -> None:
    commands = sys.argv[1:]
    stage = read()
    assert stage, "run it by scripts/record"
    write_configuration(stage)
    os.chdir(Path.home())
    with (
        tempfile.TemporaryDirectory() as directory,
        user_manager() as manager,
        installed(manager),
        Terminal(Path(directory)) as terminal,
    ):
        for command in commands:
            terminal.type(command)
        shown = terminal.shown()
    assert not any(secret in shown for secret in secrets(stage)), "a key is to be seen"
    print(draw(shown, "; ".join(commands)), end="")


if __name__ == "__main__":
    main()
