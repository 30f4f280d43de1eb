"""The completions that bash, zsh and fish themselves offer for wg4netnsctl."""

import re
import subprocess
import sys
from pathlib import Path

INSTALLED = Path(sys.prefix) / "share"
BASH = """
. /usr/share/bash-completion/bash_completion
. "$1"
compopt() { :; } # works only in a completion by readline
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3))
_wg4netnsctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(lines: list[str]) -> list[list[str]]:
    program = INSTALLED / "bash-completion/completions/wg4netnsctl"
    offered = []
    for line in lines:
        words = re.findall(r"=|[^\s=]+", line)  # the = is one of COMP_WORDBREAKS
        if line.endswith((" ", "=")):
            words.append("")
        offered.append(output("bash", "-c", BASH, "bash", program, line, *words).splitlines())
    return offered


def zsh(lines: list[str]) -> list[list[str]]:
    capture = Path(__file__).with_name("complete.zsh")
    printed = output("zsh", "-f", capture, INSTALLED / "zsh/site-functions", *lines)
    return [re.findall("<(.*?)>", part) for part in printed.split("~end~")[:-1]]


def fish(lines: list[str]) -> list[list[str]]:
    program = INSTALLED / "fish/vendor_completions.d/wg4netnsctl.fish"
    complete = "source $argv[1]; complete -C $argv[2]"
    return [
        re.findall(r"^[^\t\n]+", output("fish", "--no-config", "-c", complete, program, line), re.M)
        for line in lines
    ]


def output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout
