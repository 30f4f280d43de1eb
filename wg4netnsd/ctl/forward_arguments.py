"""The arguments of the commands for forwards, and of `up`, which can add some."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any, Final

from wg4netnsd.ctl import values

PROXY: Final = "127.0.0.1:1080"
"""Where a proxy listens unless it is told otherwise."""

Options = dict[str, tuple[str, Any]]
"""Options of AddForward, as the client sends them."""


def add_to_up(command: ArgumentParser) -> None:
    """Let a command that creates a tunnel add forwards to it."""
    for option, parse, metavar, text in (
        ("--proxy", parse_proxy, "[ADDRESS:]PORT", "serve SOCKS5, SOCKS4a and HTTP there"),
        ("--forward", parse_forward, "FORWARD", "as of the command 'forward'"),
        ("--publish", parse_publish, "PUBLISH", "as of the command 'publish'"),
    ):
        command.add_argument(
            option,
            dest="forwards",
            action="append",
            type=parse,
            metavar=metavar,
            help=f"{text}; may be repeated",
        )


def add_connect(command: ArgumentParser) -> None:
    command.add_argument(
        "--pass-fd",
        action="store_true",
        help="pass the connection's descriptor to standard output, for ssh's ProxyUseFdpass",
    )
    command.add_argument(
        "--timeout",
        type=values.seconds,
        metavar="SECONDS",
        help="give up after this time (default: 30)",
    )
    _add_name(command)
    command.add_argument("host", metavar="HOST", help="a name, looked up by the tunnel's DNS")
    command.add_argument("port", metavar="PORT", type=_port)


def add_proxy(command: ArgumentParser) -> None:
    command.add_argument(
        "--listen",
        action="append",
        type=parse_listen,
        metavar="[ADDRESS:]PORT",
        help=f"where to listen, also unix:PATH; may be repeated (default: {PROXY})",
    )
    command.add_argument(
        "--credentials", metavar="FILE", help="serve only users who know a line USER:PASSWORD of it"
    )
    _add_anyone(command)
    _add_idle(command)
    _add_json(command)
    text = "a tunnel that is up; else a wg-quick file, or its name, for one that ends with us"
    command.add_argument("conf", metavar="NAME|CONF", help=text)
    command.set_defaults(forwards=None)


def add_forward(command: ArgumentParser) -> None:
    _add_anyone(command)
    _add_idle(command)
    _add_json(command)
    _add_name(command)
    command.add_argument(
        "forward",
        type=parse_forward,
        metavar="[ADDRESS:]PORT:HOST:PORT",
        help="listen there, and connect through the tunnel; begins with 'udp:' for UDP, "
        "or with a path in place of the first port",
    )


def add_publish(command: ArgumentParser) -> None:
    command.add_argument(
        "--proxy-protocol",
        action="store_true",
        help="tell the target each client's address, by the PROXY protocol",
    )
    _add_idle(command)
    _add_json(command)
    _add_name(command)
    command.add_argument(
        "forward",
        type=parse_publish,
        metavar="PORT:HOST:PORT",
        help="listen in the tunnel, and connect from the host; begins with 'udp:' for UDP, "
        "or ends with a path in place of host and port",
    )


def add_forwards(command: ArgumentParser) -> None:
    _add_json(command)
    _add_name(command)


def add_unforward(command: ArgumentParser) -> None:
    _add_name(command)
    text = "an id, or an address that it listens on"
    command.add_argument("which", nargs="+", metavar="FORWARD", help=text)


def _add_name(command: ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", type=values.name, help="name of the tunnel")


def _add_json(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_anyone(command: ArgumentParser) -> None:
    command.add_argument(
        "--anyone",
        action="store_true",
        help="let other users and machines connect (default: processes of yours)",
    )


def _add_idle(command: ArgumentParser) -> None:
    command.add_argument(
        "--idle",
        type=values.seconds,
        metavar="SECONDS",
        help="end connections after as long without a byte (default: never; for UDP 120)",
    )


# ---------------------------------------------------------------- the values


def parse_forward(text: str) -> Options:
    """[tcp:|udp:][ADDRESS:]PORT:HOST:PORT or PATH:HOST:PORT, as for `ssh -L`."""
    protocol, rest = _protocol(text)
    place, _, port = rest.rpartition(":")
    listen, host = _split_host(place)
    if not (listen and host and port.isdecimal()):
        raise ArgumentTypeError(f"{_shown(text)}: expected [tcp:|udp:][ADDRESS:]PORT:HOST:PORT")
    return {
        "kind": ("s", "local"),
        "protocol": ("s", protocol),
        "listen": ("as", [parse_listen(listen)]),
        "target": ("s", f"{host}:{port}"),
    }


def parse_publish(text: str) -> Options:
    """[tcp:|udp:]PORT:HOST:PORT or PORT:PATH, as for `ssh -R`."""
    protocol, rest = _protocol(text)
    listen, _, target = rest.partition(":")
    path = target.removeprefix("unix:")
    is_path = path.startswith("/")
    port = target.rpartition(":")[2]
    if not listen.isdecimal() or not (is_path or (":" in target and port.isdecimal())):
        raise ArgumentTypeError(f"{_shown(text)}: expected [tcp:|udp:]PORT:HOST:PORT")
    return {
        "kind": ("s", "remote"),
        "protocol": ("s", protocol),
        "listen": ("as", [listen]),
        "target": ("s", f"unix:{path}" if is_path else target),
    }


def parse_proxy(text: str) -> Options:
    """ADDRESS:PORT, PORT or unix:PATH."""
    return {"kind": ("s", "proxy"), "listen": ("as", [parse_listen(text)])}


def parse_listen(text: str) -> str:
    """Return the daemon's form of an address to listen on; it checks the rest."""
    if text.isdecimal():
        return f"127.0.0.1:{text}"
    if text.startswith(("unix:", "/", "./", "../")):
        return f"unix:{os.path.abspath(text.removeprefix('unix:'))}"
    if ":" not in text:
        raise ArgumentTypeError(f"{_shown(text)}: expected PORT, ADDRESS:PORT or unix:PATH")
    return text.replace("localhost:", "127.0.0.1:", 1) if text.startswith("localhost:") else text


def _shown(text: str) -> str:
    return f"'{text.encode(errors='replace').decode()}'"


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ArgumentTypeError(f"{_shown(text)}: expected a port, 1 to 65535")
    return int(text)


def _protocol(text: str) -> tuple[str, str]:
    for protocol in ("tcp", "udp"):
        if text.startswith(f"{protocol}:"):
            return protocol, text.removeprefix(f"{protocol}:")
    return "tcp", text


def _split_host(place: str) -> tuple[str, str]:
    """Split LISTEN:HOST, where the host may be an IPv6 address in brackets."""
    if place.endswith("]"):
        listen, _, host = place.rpartition("[")
        return listen.removesuffix(":"), f"[{host}"
    listen, _, host = place.rpartition(":")
    return listen, host
