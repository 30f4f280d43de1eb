"""Forwards of a tunnel: `proxy`, `forward`, `publish`, `forwards`, `unforward`."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace as Arguments
from typing import Any, Final

from wg4netnsd import names
from wg4netnsd.ctl import create
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import ALREADY_EXISTS, INVALID_CONFIG, NO_SUCH_TUNNEL, Failure, of_kernel
from wg4netnsd.ctl.forward_arguments import PROXY, Options
from wg4netnsd.ctl.units import bytes_of

_KEYS: Final = {
    "id": "Id",
    "kind": "Kind",
    "protocol": "Protocol",
    "listening": "Listening",
    "target": "Target",
    "access": "Access",
    "users": "Users",
    "proxy_protocol": "ProxyProtocol",
    "idle_usec": "IdleUSec",
    "connect_usec": "ConnectUSec",
    "counters": "Counters",
}
"""The keys of a forward in JSON, and their properties."""


# ---------------------------------------------------------------- adding


def proxy(arguments: Arguments) -> int:
    """Serve a proxy on a tunnel that is up; or else bring one up, and stay in the foreground."""
    asked: Options = {"kind": ("s", "proxy"), "listen": ("as", arguments.listen or [PROXY])}
    asked |= _more(arguments)
    if names.TUNNEL_NAME.fullmatch(arguments.conf):
        with Client() as client:
            try:
                path = client.find_tunnel(arguments.conf)
            except Failure as failure:
                if failure.status != NO_SUCH_TUNNEL:
                    raise
            else:
                _print(arguments, add(client, path, asked, arguments.credentials))
                return 0
        if not os.path.exists(create.conf_path(arguments.conf)):
            text = f"'{arguments.conf}' is neither a tunnel that is up nor a configuration"
            raise Failure(text, "'wg4netnsctl list' shows the tunnels", NO_SUCH_TUNNEL)
    from wg4netnsd.ctl import foreground

    arguments.forwards = [asked]
    return foreground.run(arguments)


def forward(arguments: Arguments) -> None:
    """Lead from the host into a tunnel, or from the tunnel to the host."""
    with Client() as client:
        path = client.find_tunnel(arguments.name)
        _print(arguments, add(client, path, arguments.forward | _more(arguments)))


def add_all(client: Client, path: str, arguments: Arguments) -> None:
    """Add the forwards that were asked for with a new tunnel, and print a line for each."""
    credentials = getattr(arguments, "credentials", None)
    for asked in arguments.forwards or ():
        of_proxy = credentials if asked["kind"] == ("s", "proxy") else None
        print(_arrow(add(client, path, asked, of_proxy)), file=sys.stderr)


def add(
    client: Client, path: str, asked: Options, credentials: str | None = None
) -> dict[str, Any]:
    """Add a forward; return its properties. Raises Failure."""
    fd = -1
    if credentials:
        try:
            fd = os.open(credentials, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise of_kernel(error, status=INVALID_CONFIG) from None
        asked = asked | {"credentials": ("h", fd)}
    try:
        (added,) = client.call(path, names.TUNNEL, "AddForward", "a{sv}", asked, start=False)
        return client.properties(added, names.FORWARD)
    except Failure as failure:
        if failure.status != ALREADY_EXISTS:
            raise
        hint = "a program or another forward listens there; 'wg4netnsctl forwards NAME' lists these"
        raise Failure(str(failure), hint, ALREADY_EXISTS) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _more(arguments: Arguments) -> Options:
    """The options of AddForward that several commands have."""
    asked: Options = {}
    if arguments.idle is not None:
        asked["idle_usec"] = ("t", round(arguments.idle * 1_000_000))
    if getattr(arguments, "anyone", False):
        asked["access"] = ("s", "anyone")
    if getattr(arguments, "proxy_protocol", False):
        asked["proxy_protocol"] = ("b", True)
    return asked


def _print(arguments: Arguments, found: dict[str, Any]) -> None:
    print(json.dumps(describe(found)) if arguments.json else _arrow(found))


def _arrow(found: dict[str, Any]) -> str:
    """LISTENING -> TARGET: scripts find a port here that the kernel chose."""
    return f"{' '.join(found['Listening'])} -> {found['Target'] or 'proxy'}"


# ---------------------------------------------------------------- listing and removing


def describe(found: dict[str, Any]) -> dict[str, Any]:
    """A forward for --json."""
    return {key: found[name] for key, name in _KEYS.items()}


def of_tunnel(client: Client, path: str) -> dict[str, dict[str, Any]]:
    """Return the properties of a tunnel's forwards by their paths."""
    return {
        where: found
        for where, found in client.objects(names.FORWARD).items()
        if found["Tunnel"] == path
    }


def run_list(arguments: Arguments) -> None:
    """Print a line for each forward of a tunnel."""
    with Client() as client:
        found = of_tunnel(client, client.find_tunnel(arguments.name)).values()
    if arguments.json:
        print(json.dumps([describe(each) for each in found]))
    elif found:
        rows = [_HEADINGS, *map(_row, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())


_HEADINGS: Final = ("ID", "KIND", "LISTENING", "TARGET", "OPEN", "TOTAL", "REFUSED", "IN", "OUT")


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    seen = found["Counters"]
    return (
        found["Id"],
        found["Kind"] + ("/udp" if found["Protocol"] == "udp" else ""),
        " ".join(found["Listening"]),
        found["Target"] or "-",
        *(str(seen[name]) for name in ("open", "total", "refused")),
        *(bytes_of(seen[name]) for name in ("bytes_in", "bytes_out")),
    )


def unforward(arguments: Arguments) -> None:
    """Remove forwards, by their ids or an address that they listen on."""
    with Client() as client:
        found = of_tunnel(client, client.find_tunnel(arguments.name))
        for path in [_find(found, wanted, arguments.name) for wanted in arguments.which]:
            client.call(path, names.FORWARD, "Remove", start=False)


def _find(found: dict[str, dict[str, Any]], wanted: str, tunnel: str) -> str:
    for path, each in found.items():
        if wanted in (each["Id"], *each["Listening"]):
            return path
    hint = f"'wg4netnsctl forwards {tunnel}' shows the forwards"
    raise Failure(f"{tunnel} has no forward '{wanted}'", hint, NO_SUCH_TUNNEL)
