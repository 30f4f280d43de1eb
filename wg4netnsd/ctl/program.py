"""The command line of `wg4netnsctl`, and the exit status."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Final, NamedTuple, NoReturn

from wg4netnsd import __version__
from wg4netnsd.ctl import forward_arguments, values
from wg4netnsd.ctl.failure import FAILED, Failure, complain, of_kernel


def main() -> None:
    """Parse the command line, run the command, exit."""
    _open_standard_streams()
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("wg4netnsctl")  # for ps: behind env, it is Python's
    # Supervisors may start us with it ignored; then wait(2) does not report a child's status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        sys.exit(_run_command(sys.argv[1:]))
    except KeyboardInterrupt:
        _end_by_interrupt()


def _end_by_interrupt() -> NoReturn:
    """End by SIGINT itself: a script, or a loop in one, goes on after a mere exit status."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(128 + signal.SIGINT)  # in a PID namespace's init, a signal of its own does nothing


def _open_standard_streams() -> None:
    """Open the ones that we were started without: the next opened file would take their place."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  to the end
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _run_command(words: list[str]) -> int:
    """Return the exit status; failure.py lists them."""
    try:
        arguments = _parse(words)
        function = _function(arguments.run)
        gc.enable()
        # See launcher.py. Not earlier: amid an import, Python may print the exception and go on.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        status = function(arguments) or 0
        sys.stdout.flush()
    except Failure as failure:
        complain(str(failure), failure.hint)
        return failure.status
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _drop_output()
        complain(str(of_kernel(error)))
        return FAILED
    return status


def _drop_output() -> None:
    """Discard what could not be written: Python would try again at exit."""
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
    help: str
    add_arguments: Callable[[ArgumentParser], object]


def _parse(words: list[str]) -> argparse.Namespace:
    # Building the parser of all commands takes longer than making a namespace.
    known = words[:1] if words[:1] and words[0] in _COMMANDS else _COMMANDS
    if words[:1] not in (["run"], ["exec"]):
        return parser(known).parse_args(words)
    # Words after -- belong to the command, options too; so does a -- after the command's name.
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
    """The parser of these commands, or of all. contrib/completions offers the same options."""
    top = ArgumentParser(
        prog="wg4netnsctl",
        description="Run programs behind their own WireGuard tunnel, without root.",
        epilog="See wg4netnsctl(1) for examples and exit statuses.",
        formatter_class=_formatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name in known or _COMMANDS:
        function, text, add_arguments = _COMMANDS[name]
        sentence = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(
            name, help=text, description=sentence, formatter_class=_formatter
        )
        command.set_defaults(run=function, refuse=command.error)
        add_arguments(command)
    return top


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Without a width it asks shutil for one, and importing that takes 3 ms.
    return argparse.HelpFormatter(prog, width=78)


def _run(command: ArgumentParser) -> None:
    _add_creation(command)
    command.add_argument(
        "--share-pids", action="store_true", help="stay in the current PID namespace"
    )
    _add_capabilities(command)
    _add_conf(command)
    _add_command(command)


def _up(command: ArgumentParser) -> None:
    _add_creation(command)
    command.add_argument(
        "--foreground", action="store_true", help="stay in the foreground and end with the tunnel"
    )
    forward_arguments.add_to_up(command)
    _add_json(command, "print name, object path and resolv.conf as JSON")
    _add_conf(command)


def _attach(command: ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--pid", type=values.pid, help="PID of a process in the namespace")
    where.add_argument(
        "--netns", metavar="PATH", help="file of the namespace, such as /proc/PID/ns/net"
    )
    _add_creation(command)
    command.add_argument(
        "--lifetime",
        choices=("namespace", "persistent"),
        default="namespace",
        help="end the tunnel with its namespace (the default), or only by 'down'",
    )
    _add_json(command, "print name, object path and resolv.conf as JSON")
    _add_conf(command)


def _exec(command: ArgumentParser) -> None:
    _add_trust_root(command)
    _add_capabilities(command)
    _add_name(command)
    _add_command(command)


def _shell(command: ArgumentParser) -> None:
    _add_trust_root(command)
    _add_capabilities(command)
    _add_name(command)


def _list(command: ArgumentParser) -> None:
    command.add_argument("-q", "--quiet", action="store_true", help="print only the names")
    _add_json(command)


def _show(command: ArgumentParser) -> None:
    _add_json(command)
    _add_name(command, nargs="?")


def _monitor(command: ArgumentParser) -> None:
    _add_json(command, "print one JSON object per line")
    command.add_argument("--full", action="store_true", help="do not shorten public keys")
    command.add_argument(
        "names", nargs="*", metavar="NAME", type=values.name, help="only these tunnels"
    )


def _reload(command: ArgumentParser) -> None:
    _add_mtu_and_ignore(command)
    _add_transit(command)
    _add_name(command)
    _add_conf(command, nargs="?")


def _wg(command: ArgumentParser) -> None:
    _add_name(command)
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="arguments of wg")


def _proxy(command: ArgumentParser) -> None:
    _add_creation(command)
    forward_arguments.add_proxy(command)


def _setup(command: ArgumentParser) -> None:
    command.add_argument(
        "--remove",
        action="store_true",
        help="stop the daemon and all tunnels, and remove what setup installed",
    )


def _add_creation(command: ArgumentParser) -> None:
    command.add_argument(
        "--name", type=values.name, help="name of the tunnel (default: the file's)"
    )
    command.add_argument(
        "--interface",
        type=values.interface,
        metavar="IFNAME",
        help="name of the interface (default: wg0)",
    )
    command.add_argument("--handshake", action="store_true", help="wait until a peer has answered")
    command.add_argument(
        "--timeout",
        type=values.seconds,
        metavar="SECONDS",
        help="give up after this time (default: 20)",
    )
    _add_mtu_and_ignore(command)
    _add_transit(command)


def _add_transit(command: ArgumentParser) -> None:
    transit = command.add_mutually_exclusive_group()
    transit.add_argument(
        "--via", metavar="NAME", type=values.name, help="send everything through this tunnel"
    )
    transit.add_argument(
        "--transit-pid",
        type=values.pid,
        metavar="PID",
        help="send it from this process's namespace",
    )
    transit.add_argument("--transit-netns", metavar="PATH", help="or from that of this file")
    transit.add_argument(
        "--transit-fd",
        action="append",
        type=values.fd,
        metavar="FD",
        help="send it with this open UDP socket; twice for IPv4 and IPv6",
    )


def _add_mtu_and_ignore(command: ArgumentParser) -> None:
    command.add_argument(
        "--mtu", type=values.mtu, metavar="BYTES", help="MTU to use instead of the file's"
    )
    command.add_argument(
        "--ignore",
        action="extend",
        type=values.keys,
        metavar="KEY[,KEY…]",
        help="ignore these keys of the file, such as PostUp, which needs root; may be repeated",
    )


def _add_conf(command: ArgumentParser, **more: Any) -> None:
    text = "wg-quick file; a bare NAME means ~/.config/wg4netnsd/NAME.conf"
    command.add_argument("conf", metavar="CONF", help=text, **more)


def _add_trust_root(command: ArgumentParser) -> None:
    command.add_argument(
        "--trust-root",
        action="store_true",
        help="enter a namespace that was attached, whose root can take over what runs there",
    )


def _add_capabilities(command: ArgumentParser) -> None:
    command.add_argument(
        "--cap",
        action="extend",
        type=values.capabilities,
        metavar="NAME",
        help="let the command keep a capability: net_raw, as tcpdump needs, or net_admin",
    )


def _add_name(command: ArgumentParser, **more: Any) -> None:
    command.add_argument(
        "name", metavar="NAME", type=values.name, help="name of the tunnel", **more
    )


def _add_json(command: ArgumentParser, text: str = "print JSON") -> None:
    command.add_argument("--json", action="store_true", help=text)


def _add_command(command: ArgumentParser) -> None:
    command.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- CMD…", help="the command and its arguments"
    )


_COMMANDS: Final = {
    "run": _Command("run:run", "run a command behind a tunnel that ends with it", _run),
    "up": _Command("tunnels:up", "bring up a tunnel in a new namespace", _up),
    "attach": _Command("tunnels:attach", "bring up a tunnel in an existing namespace", _attach),
    "down": _Command(
        "tunnels:down",
        "take tunnels down",
        lambda command: command.add_argument("names", nargs="+", metavar="NAME", type=values.name),
    ),
    "exec": _Command("run:execute", "run a command in a tunnel's namespace", _exec),
    "shell": _Command("run:shell", "run your shell in a tunnel's namespace", _shell),
    "list": _Command("show:run_list", "list the tunnels, one per line", _list),
    "show": _Command("show:run_show", "show tunnels and their peers, like 'wg show'", _show),
    "monitor": _Command(
        "monitor:run", "print events of tunnels and peers as they happen", _monitor
    ),
    "reload": _Command("tunnels:reload", "apply a changed configuration to a tunnel", _reload),
    "restart": _Command(
        "tunnels:restart", "replace a tunnel's engine; its interface stays", _add_name
    ),
    "connect": _Command(
        "connect:run",
        "connect standard input and output to a host behind a tunnel",
        forward_arguments.add_connect,
    ),
    "proxy": _Command("forwards:proxy", "serve a SOCKS and HTTP proxy into a tunnel", _proxy),
    "forward": _Command(
        "forwards:forward",
        "lead from a port of the host into a tunnel, like 'ssh -L'",
        forward_arguments.add_forward,
    ),
    "publish": _Command(
        "forwards:forward",
        "lead from a port in a tunnel to the host, like 'ssh -R'",
        forward_arguments.add_publish,
    ),
    "forwards": _Command(
        "forwards:run_list", "list a tunnel's forwards", forward_arguments.add_forwards
    ),
    "unforward": _Command("forwards:unforward", "remove forwards", forward_arguments.add_unforward),
    "wg": _Command("wg:run", "run wg(8) on a tunnel", _wg),
    "doctor": _Command(
        "doctor:run", "show what this machine lacks and what to do about it", _add_json
    ),
    "setup": _Command(
        "setup:run", "install systemd units, bus activation, completions and man pages", _setup
    ),
}
