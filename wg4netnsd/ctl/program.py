"""The command line of `wg4netnsctl`, and what comes of it."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Final, NamedTuple

from wg4netnsd import __version__, errors, names
from wg4netnsd.ctl.failure import FAILED, Failure, complain, of_kernel


def main() -> None:
    """The whole program."""
    _open_standard_streams()
    # Where it is ignored, as supervisors may, nobody is told how a child has ended (wait(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.exit(_do(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Where we are started without one: else the next file that is opened would be it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  to the end
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _do(words: list[str]) -> int:
    """The exit status; failure.py has the table of them."""
    try:
        arguments = _parse(words)
        function = _function(arguments.run)
        gc.enable()
        status = function(arguments) or 0
        sys.stdout.flush()
    except Failure as failure:
        complain(str(failure), failure.hint)
        return failure.status
    except errors.Error as error:
        complain(error.text)
        return FAILED
    except BrokenPipeError:  # who read our output has enough
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _drop_output()
        complain(str(of_kernel(error)))
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _drop_output() -> None:
    """What could not be written: Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _function(path: str) -> Callable[[argparse.Namespace], int | None]:
    module, _, function = path.partition(":")
    found: Callable[[argparse.Namespace], int | None] = getattr(
        import_module(f"wg4netnsd.ctl.{module}"), function
    )
    return found


# ---------------------------------------------------------------- the command line


class _Command(NamedTuple):
    run: str  # module:function
    text: str
    add_arguments: Callable[[ArgumentParser], object]


def _parse(words: list[str]) -> argparse.Namespace:
    # A parser of all commands takes longer to build than a namespace.
    known = words[:1] if words[:1] and words[0] in _COMMANDS else _COMMANDS
    if words[:1] not in (["run"], ["exec"]):
        return parser(known).parse_args(words)
    # What is after -- is the command's, options too; and -- as well where it has begun before.
    place = words.index("--") if "--" in words else len(words)
    arguments = parser(known).parse_args(words[:place])
    command: list[str] = arguments.command
    if command and command[0].startswith("-"):
        arguments.refuse(f"{command[0]}: options go before CONF or NAME")
    command += words[place:] if command else words[place + 1 :]
    if not command:
        arguments.refuse("no command: expected one after --")
    return arguments


def parser(known: Iterable[str] | None = None) -> ArgumentParser:
    """For these commands, or for all; contrib/completions has the same."""
    top = ArgumentParser(
        prog="wg4netnsctl",
        description="Run programs behind a WireGuard tunnel of their own, without root.",
        epilog="wg4netnsctl(1) has examples, and the exit statuses.",
        formatter_class=_formatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name in known or _COMMANDS:
        function, text, add_arguments = _COMMANDS[name]
        command = commands.add_parser(name, help=text, description=text, formatter_class=_formatter)
        command.set_defaults(run=function, refuse=command.error)
        add_arguments(command)
    return top


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Left to itself it asks shutil for the width at each option, and importing that takes 3 ms.
    return argparse.HelpFormatter(prog, width=78)


def _run(command: ArgumentParser) -> None:
    _add_creation(command)
    command.add_argument(
        "--share-pids", action="store_true", help="in the PID namespace that we are in"
    )
    _add_conf(command)
    _add_command(command)


def _up(command: ArgumentParser) -> None:
    _add_creation(command)
    command.add_argument(
        "--foreground", action="store_true", help="stay, and end the tunnel at the end"
    )
    _add_json(command, "its name, its object path and its resolv.conf, as JSON")
    _add_conf(command)


def _attach(command: ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--pid", type=_pid, help="of a process in it")
    where.add_argument("--netns", metavar="PATH", help="its file, such as /proc/PID/ns/net")
    _add_creation(command)
    command.add_argument(
        "--lifetime",
        choices=("namespace", "persistent"),
        default="namespace",
        help="until when: its namespace's end (the default), or 'down'",
    )
    _add_json(command, "its name, its object path and its resolv.conf, as JSON")
    _add_conf(command)


def _exec(command: ArgumentParser) -> None:
    _add_name(command)
    _add_command(command)


def _list(command: ArgumentParser) -> None:
    command.add_argument("-q", "--quiet", action="store_true", help="their names alone")
    _add_json(command)


def _show(command: ArgumentParser) -> None:
    _add_json(command)
    _add_name(command, nargs="?")


def _monitor(command: ArgumentParser) -> None:
    _add_json(command, "a JSON object a line")
    command.add_argument("--full", action="store_true", help="do not shorten public keys")
    command.add_argument("names", nargs="*", metavar="NAME", type=_name, help="of these alone")


def _reload(command: ArgumentParser) -> None:
    _add_mtu_and_ignore(command)
    _add_name(command)
    _add_conf(command, nargs="?")


def _wg(command: ArgumentParser) -> None:
    _add_name(command)
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="wg's own")


def _setup(command: ArgumentParser) -> None:
    command.add_argument("--remove", action="store_true", help="undo that, and stop all of it")


def _add_creation(command: ArgumentParser) -> None:
    command.add_argument("--name", type=_name, help="the tunnel's; else that of the file")
    command.add_argument(
        "--interface", type=_interface, metavar="IFNAME", help="its name inside; else wg0"
    )
    command.add_argument("--handshake", action="store_true", help="wait for a peer's answer")
    command.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="give up after that; else 20"
    )
    _add_mtu_and_ignore(command)


def _add_mtu_and_ignore(command: ArgumentParser) -> None:
    command.add_argument("--mtu", type=_mtu, metavar="BYTES", help="in place of the file's")
    command.add_argument(
        "--ignore",
        action="append",
        type=_key,
        metavar="KEY",
        help="of the file, such as PostUp, which can't be honoured; may be repeated",
    )


def _add_conf(command: ArgumentParser, **more: Any) -> None:
    text = "a wg-quick file; a bare NAME is ~/.config/wg4netnsd/NAME.conf"
    command.add_argument("conf", metavar="CONF", help=text, **more)


def _add_name(command: ArgumentParser, **more: Any) -> None:
    command.add_argument("name", metavar="NAME", type=_name, help="the tunnel's", **more)


def _add_json(command: ArgumentParser, text: str = "as JSON") -> None:
    command.add_argument("--json", action="store_true", help=text)


def _add_command(command: ArgumentParser) -> None:
    command.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- CMD…", help="and its arguments"
    )


def _name(text: str) -> str:
    if not names.TUNNEL_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"no tunnel can be named {_shown(text)}")
    return text


def _interface(text: str) -> str:
    if not names.INTERFACE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"no interface can be named {_shown(text)}")
    return text


def _mtu(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected bytes, 1 to 65535")
    return int(text)


def _key(text: str) -> str:
    if not (text.isascii() and text.isalpha()):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected a key such as PostUp")
    return text


def _shown(text: str) -> str:
    return f"'{text.encode(errors='replace').decode()}'"


def _pid(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected a process's number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected seconds, more than 0")
    return seconds


_COMMANDS: Final = {
    "run": _Command("run:run", "run a command behind a tunnel that ends with it", _run),
    "up": _Command("tunnels:up", "bring up a tunnel in a namespace of its own", _up),
    "attach": _Command("tunnels:attach", "bring up a tunnel in a namespace that is there", _attach),
    "down": _Command(
        "tunnels:down",
        "end tunnels",
        lambda command: command.add_argument("names", nargs="+", metavar="NAME", type=_name),
    ),
    "exec": _Command("run:execute", "run a command in a tunnel's namespace", _exec),
    "shell": _Command("run:shell", "run your shell in a tunnel's namespace", _add_name),
    "list": _Command("show:run_list", "list the tunnels, one a line", _list),
    "show": _Command("show:run_show", "show tunnels and their peers as 'wg show' does", _show),
    "monitor": _Command("monitor:run", "print what happens to tunnels and their peers", _monitor),
    "reload": _Command("tunnels:reload", "give a tunnel another configuration", _reload),
    "restart": _Command(
        "tunnels:restart", "replace a tunnel's engine; its interface stays", _add_name
    ),
    "wg": _Command("wg:run", "run wg(8) on a tunnel's engine", _wg),
    "doctor": _Command(
        "doctor:run", "tell what this machine lacks, and what to do about it", _add_json
    ),
    "setup": _Command("setup:run", "make the session bus start wg4netnsd for you", _setup),
}
