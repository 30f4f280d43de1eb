"""`list`, one line per tunnel, and `show`, with the layout of `wg show`."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from argparse import Namespace as Arguments
from collections.abc import Iterator
from typing import Any, Final

from wg4netnsd import names
from wg4netnsd.ctl import colours, forwards
from wg4netnsd.ctl.client import Client, plain
from wg4netnsd.ctl.colours import paint
from wg4netnsd.ctl.failure import without_name
from wg4netnsd.ctl.units import bytes_of

_KEYS: Final = {
    "name": "Name",
    "state": "State",
    "interface": "Interface",
    "link_state": "LinkState",
    "netns_id": "NetnsId",
    "lifetime": "Lifetime",
    "transit": "Transit",
    "root_trusted": "RootTrusted",
    "created_usec": "CreatedUSec",
    "public_key": "PublicKey",
    "listen_port": "ListenPort",
    "mtu": "Mtu",
    "addresses": "Addresses",
    "dns": "Dns",
    "resolv_conf": "ResolvConf",
    "engine_pid": "EnginePID",
    "restart_count": "RestartCount",
    "last_error": "LastError",
}
"""The keys of a tunnel in JSON and their properties; spelled as in GetPeers."""

_HEADINGS: Final = ("NAME", "STATE", "PEERS", "UP SINCE", "ADDRESSES")
_TIMES: Final = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


def run_list(arguments: Arguments) -> None:
    with Client() as client:
        tunnels = client.tunnels()
    if arguments.quiet:
        sys.stdout.writelines(f"{tunnel['Name']}\n" for tunnel in tunnels.values())
    elif arguments.json:
        print(json.dumps([_summary(path, tunnel) for path, tunnel in tunnels.items()]))
    elif tunnels:
        sys.stdout.writelines(_table([_HEADINGS, *map(_row, tunnels.values())]))


def run_show(arguments: Arguments) -> None:
    with Client() as client:
        if arguments.name:
            path = client.find_tunnel(arguments.name)
            found = {path: client.tunnel(path)}
        else:
            found = client.tunnels()
        forwarding = client.objects(names.FORWARD) if found else {}
    described = [
        _describe(path, tunnel)
        | {"forwards": [forwards.describe(f) for f in forwarding.values() if f["Tunnel"] == path]}
        for path, tunnel in found.items()
    ]
    if arguments.json:
        print(json.dumps(described))
    elif described:
        print("\n\n".join("\n".join(_lines(tunnel)) for tunnel in described))


# ---------------------------------------------------------------- list


def _summary(path: str, tunnel: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tunnel["Name"],
        "path": path,
        "state": tunnel["State"],
        "interface": tunnel["Interface"],
        "addresses": tunnel["Addresses"],
        "peers": {key: plain(peer)["state"] for key, peer in tunnel["Peers"].items()},
        "created_usec": tunnel["CreatedUSec"],
    }


def _row(tunnel: dict[str, Any]) -> tuple[str, ...]:
    peers = [plain(peer)["state"] for peer in tunnel["Peers"].values()]
    since = time.localtime(tunnel["CreatedUSec"] / 1e6)
    today = time.strftime("%Y-%m-%d", since) == time.strftime("%Y-%m-%d")
    return (
        tunnel["Name"],
        tunnel["State"],
        f"{peers.count('active')}/{len(peers)}",
        time.strftime("%H:%M" if today else "%Y-%m-%d", since),
        " ".join(tunnel["Addresses"]),
    )


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = _width() - sum(widths[:-1]) - 2 * len(widths[:-1])
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-1] = _cut(row[-1], room)
        if number == 0:
            yield paint("  ".join(cells), colours.BOLD) + "\n"
        else:
            cells[1] = paint(cells[1], colours.OF_STATE.get(row[1]))
            yield "  ".join(cells).rstrip() + "\n"


def _width() -> float:
    """The columns of the terminal; unlimited in a pipe."""
    return os.get_terminal_size(1).columns if sys.stdout.isatty() else math.inf


def _cut(values: str, room: float) -> str:
    """As many values as there is room for, at least one, and the number of the others."""
    shown = values.split(" ")
    for hidden in range(len(shown)):
        text = " ".join([*shown[: len(shown) - hidden], *([f"+{hidden}"] if hidden else [])])
        if len(text) <= room:
            break
    return text


# ---------------------------------------------------------------- show


def _describe(path: str, tunnel: dict[str, Any]) -> dict[str, Any]:
    """A tunnel for `--json`. The daemon has just asked the engine for the peers' counters."""
    known = {key: tunnel[name] for key, name in _KEYS.items() if name in tunnel}
    peers = {key: plain(peer) for key, peer in tunnel["Peers"].items()}
    return known | {"path": path, "peers": peers}


def _lines(tunnel: dict[str, Any]) -> Iterator[str]:
    state = tunnel["state"]
    yield f"{paint('tunnel', colours.GREEN)}: {paint(tunnel['name'], colours.GREEN)}"
    yield from _fields(
        state=paint(state, colours.OF_STATE.get(state)),
        interface=_interface(tunnel),
        public_key=tunnel["public_key"],
        listening_port=str(tunnel["listen_port"] or ""),
        addresses=", ".join(tunnel["addresses"]),
        dns=", ".join(tunnel["dns"]) or "none",
        mtu=str(tunnel["mtu"]),
        transit=_transit(*tunnel.get("transit", ("host", ""))),
        engine=_engine(tunnel),
        last_error=without_name(*tunnel["last_error"]),
    )
    for key, peer in tunnel["peers"].items():
        yield ""
        yield f"{paint('peer', colours.YELLOW)}: {paint(key, colours.YELLOW)}"
        yield from _fields(
            state=paint(peer["state"], colours.OF_STATE.get(peer["state"])),
            endpoint=_endpoint(peer),
            allowed_ips=", ".join(peer["allowed_ips"]) or "(none)",
            latest_handshake=_ago(peer["last_handshake_usec"]),
            transfer=_transfer(peer["rx_bytes"], peer["tx_bytes"]),
            persistent_keepalive=_every(peer["persistent_keepalive"]),
        )

    for forward in tunnel["forwards"]:
        yield ""
        yield f"{paint('forward', colours.YELLOW)}: {paint(forward['id'], colours.YELLOW)}"
        seen = forward["counters"]
        counted = ("open", "total", "refused", "failed")
        yield from _fields(
            kind=f"{forward['kind']} ({forward['protocol']})",
            listening=", ".join(forward["listening"]),
            target=forward["target"],
            access="anyone" if forward["access"] == "anyone" else "",
            connections=", ".join(f"{seen[name]} {name}" for name in counted),
            transfer=_transfer(seen["bytes_in"], seen["bytes_out"]),
        )


def _fields(**fields: str) -> Iterator[str]:
    for name, value in fields.items():
        if value:
            yield f"  {paint(name.replace('_', ' '), colours.BOLD)}: {value}"


def _interface(tunnel: dict[str, Any]) -> str:
    link = tunnel.get("link_state", "up")
    return tunnel["interface"] if link == "up" else f"{tunnel['interface']} ({link})"


def _engine(tunnel: dict[str, Any]) -> str:
    if not tunnel["engine_pid"]:
        return "none"
    restarts = tunnel["restart_count"]
    again = f", replaced {_count(restarts, 'time')}" if restarts else ""
    return f"process {tunnel['engine_pid']}{again}"


def _transit(kind: str, detail: str) -> str:
    return "" if kind == "host" else f"{kind} {detail}".rstrip()


def _endpoint(peer: dict[str, Any]) -> str:
    address, host = peer["endpoint"], peer["endpoint_host"]
    if error := peer["endpoint_error"]:
        reason = without_name("Unresolved", error).removeprefix(f"{host.rpartition(':')[0]}: ")
        return f"{address or host} ({reason})"
    return f"{address} ({host})" if address and host not in ("", address) else address or host


def _ago(usec: int) -> str:
    """The time since then, in the words of wg(8)."""
    if not usec:
        return ""
    seconds = max(round(time.time() - usec / 1e6), 0)
    parts = []
    for unit, length in _TIMES:
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(_count(count, unit))
    return ", ".join(parts) + " ago" if parts else "now"


def _transfer(received: int, sent: int) -> str:
    return f"{bytes_of(received)} received, {bytes_of(sent)} sent" if received or sent else ""


def _every(seconds: int) -> str:
    return f"every {_count(seconds, 'second')}" if seconds else ""


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
