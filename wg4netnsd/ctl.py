"""`wg4netnsctl`: a client of the public bus API like any other; it speaks through busctl(1)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any, Final

from wg4netnsd import errors, names

_NOT_RUNNING: Final = ("does not exist", "was not provided by any", "not activatable")
"""The bus's words where a name has no owner; busctl does not print the error's name."""


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
        description="Install wg4netnsd for its user; list and close tunnels. They are created over "
        "the bus: see org.wg4netns1(5).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("setup", help="make the session bus start wg4netnsd for you")
    command.add_argument("--remove", action="store_true", help="undo that, and stop the daemon")
    command.set_defaults(run=_setup)

    command = commands.add_parser("list", help="list the tunnels: name, state, object")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_list)

    command = commands.add_parser("close", help="end a tunnel")
    command.add_argument("name")
    command.set_defaults(run=_close)
    return parser.parse_args()


def _setup(arguments: argparse.Namespace) -> None:
    from wg4netnsd import setup  # not needed by, nor paid for in, the other commands

    for line in setup.remove() if arguments.remove else setup.install():
        print(line)


def _list(arguments: argparse.Namespace) -> None:
    tunnels = _call(names.ROOT_PATH, names.MANAGER, "ListTunnels", start=False) or [[]]
    if arguments.json:
        print(
            json.dumps([dict(zip(("name", "path", "state"), t, strict=True)) for t in tunnels[0]])
        )
        return
    width = max((len(name) for name, _, _ in tunnels[0]), default=0)
    for name, path, state in tunnels[0]:
        print(f"{name:<{width}}  {state:<10}  {path}")


def _close(arguments: argparse.Namespace) -> None:
    found = _call(names.ROOT_PATH, names.MANAGER, "GetTunnel", "s", arguments.name, start=False)
    if not found:
        raise errors.NoSuchTunnel(f"no tunnel named '{arguments.name}': wg4netnsd does not run")
    _call(found[0], names.TUNNEL, "Close", start=False)


def _call(
    path: str, interface: str, method: str, *arguments: str, start: bool = True
) -> list[Any] | None:
    """The reply's body; None where the daemon does not run and `start` forbids to start it."""
    command = ["busctl", "--user", "--json=short", f"--auto-start={'yes' if start else 'no'}"]
    command += ["call", names.BUS_NAME, path, interface, method, *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise errors.Failed("busctl is not to be found: it comes with systemd") from None
    if result.returncode == 0:
        body: list[Any] = json.loads(result.stdout or '{"data": []}')["data"]
        return body
    message = result.stderr.strip().removeprefix("Call failed: ")
    if not start and any(words in message for words in _NOT_RUNNING):
        return None
    raise errors.Failed(message)
