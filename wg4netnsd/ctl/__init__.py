"""`wg4netnsctl`: a client of the public bus API like any other; it speaks through busctl(1)."""

from __future__ import annotations

import argparse
import json
import sys

from wg4netnsd import errors, names
from wg4netnsd.ctl import busctl


def main() -> None:
    """Entry point of `wg4netnsctl`."""
    arguments = _parse_arguments()
    try:
        arguments.run(arguments)
    except errors.Error as error:
        sys.exit(f"wg4netnsctl: {error.text}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="wg4netnsctl",
        description="Install wg4netnsd for its user; list, watch and close tunnels. They are "
        "created over the bus: see org.wg4netns1(5).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("setup", help="make the session bus start wg4netnsd for you")
    command.add_argument("--remove", action="store_true", help="undo that, and stop the daemon")
    command.set_defaults(run=_setup)

    command = commands.add_parser("list", help="list the tunnels: name, state, object")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_list)

    command = commands.add_parser("monitor", help="print what happens to tunnels and their peers")
    command.add_argument("names", nargs="*", metavar="NAME", type=_name, help="of these alone")
    command.add_argument("--json", action="store_true", help="a JSON object a line")
    command.add_argument("--full", action="store_true", help="do not shorten public keys")
    command.set_defaults(run=_monitor)

    command = commands.add_parser("doctor", help="check what this machine has and lacks")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_doctor)

    command = commands.add_parser("close", help="end a tunnel")
    command.add_argument("name")
    command.set_defaults(run=_close)
    return parser.parse_args()


def _setup(arguments: argparse.Namespace) -> None:
    from wg4netnsd.ctl import setup  # not needed by, nor paid for in, the other commands

    for line in setup.remove() if arguments.remove else setup.install():
        print(line)


def _list(arguments: argparse.Namespace) -> None:
    tunnels = busctl.call(names.ROOT_PATH, names.MANAGER, "ListTunnels", start=False) or [[]]
    if arguments.json:
        print(
            json.dumps([dict(zip(("name", "path", "state"), t, strict=True)) for t in tunnels[0]])
        )
        return
    width = max((len(name) for name, _, _ in tunnels[0]), default=0)
    for name, path, state in tunnels[0]:
        print(f"{name:<{width}}  {state:<10}  {path}")


def _name(text: str) -> str:
    if not names.TUNNEL_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"no tunnel can be named '{text}'")
    return text


def _monitor(arguments: argparse.Namespace) -> None:
    from wg4netnsd.ctl import monitor

    monitor.run(arguments.names, arguments.json, arguments.full)


def _doctor(arguments: argparse.Namespace) -> None:
    from wg4netnsd.ctl import doctor

    sys.exit(doctor.run(arguments.json))


def _close(arguments: argparse.Namespace) -> None:
    found = busctl.call(
        names.ROOT_PATH, names.MANAGER, "GetTunnel", "s", arguments.name, start=False
    )
    if not found:
        raise errors.NoSuchTunnel(f"no tunnel named '{arguments.name}': wg4netnsd does not run")
    busctl.call(found[0], names.TUNNEL, "Close", start=False)
