"""`up --foreground`: a tunnel as a service. It ends with us, and we end with it.

    systemd ──SIGTERM──► we ───Close────► the daemon      we end when nothing of the tunnel is left
                         ▲                    │
                         └─── StateChanged ───┘           closed: so we end; failed: and say why

Daemon and bus may be restarted meanwhile: the next daemon has the tunnel as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from argparse import Namespace as Arguments
from typing import Any, Final, NamedTuple

from wg4netnsd import names
from wg4netnsd.ctl import create, namespaces
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import UNREACHABLE, Failure
from wg4netnsd.kernel import signals
from wg4netnsd.systemd import notify

SUCCESSION_TIME: Final = 30.0
"""Seconds that systemd gets to start daemon and bus anew. It gives up sooner, after 10 tries; then
the tunnel has ended."""
RECONNECT_TIME: Final = 0.2
"""Seconds from one try to the next: nobody tells when there is a bus to connect to."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Told(BaseException):
    """By a signal, to end. No Exception: wherever that comes, nobody may take it for one."""


class _Tunnel(NamedTuple):
    path: str
    name: str
    created_usec: int


def run(arguments: Arguments) -> int:
    """0 when the tunnel was closed, by a signal to us or by somebody else; Failure if it failed."""
    signals.catch(_ENDING, _tell)
    with contextlib.suppress(_Told), contextlib.ExitStack() as at_end:
        try:
            client, tunnel = _up(arguments, at_end)
            notify.ready()
            _until_it_ends(client, tunnel)
        except Failure as failure:
            notify.stopping(str(failure))
            raise
        except _Told:
            notify.stopping("told to end")
            raise
    return 0


def _tell(*_: object) -> None:
    for number in _ENDING:  # once is enough; the end is not to be cut short
        signal.signal(number, signal.SIG_IGN)
    raise _Told


def _up(arguments: Arguments, at_end: contextlib.ExitStack) -> tuple[Client, _Tunnel]:
    """A tunnel, in a namespace of our own, which we enter."""
    notify.status("waiting for the tunnel")
    with create.opened(arguments.conf) as conf:
        client = at_end.enter_context(Client())
        lease = os.pidfd_open(os.getpid())
        name = create.suggested_name(conf.name)
        asked = create.options(arguments, name, lifetime=("s", "lease"), lease=("h", lease))
        namespaces.make()
        at_end.callback(_close)
        netns = namespaces.own_netns()
        path = create.finish(create.begin(client, netns, conf, asked), asked)
        os.close(netns)
        os.close(lease)
    found = client.properties(path)
    notify.status(_summary(found))
    # journald learns a stream's unit from the first line, while the process is there: without this
    # one, "has ended" could come too late to be shown among the unit's.
    print(f"{found['Name']} is {_summary(found)}", file=sys.stderr)
    return client, _Tunnel(path, found["Name"], found["CreatedUSec"])


# ---------------------------------------------------------------- until its end


def _until_it_ends(client: Client, tunnel: _Tunnel) -> None:
    """Raises Failure if it has failed, or is not to be found any more."""
    while True:
        try:
            with client:
                _follow(client, tunnel)
                return
        except Failure as failure:
            if failure.status != UNREACHABLE:
                raise
        client = _reconnected()


def _follow(client: Client, tunnel: _Tunnel) -> None:
    client.listen(path=tunnel.path, member="StateChanged")
    served = _is_served(client, tunnel)
    while True:
        try:
            heard = client.next_signal(None if served else SUCCESSION_TIME)
        except TimeoutError:
            text = f"{tunnel.name} was lost: its daemon has ended, and no other has come"
            raise Failure(text) from None
        match heard.member, heard.body:
            case "StateChanged", ("closed", _, reason):
                notify.stopping(reason)
                print(f"{tunnel.name} has ended: {reason}", file=sys.stderr)
                return
            case "StateChanged", ("failed", _, reason):
                raise _failed(tunnel, reason)
            case "StateChanged", (state, _, reason):
                notify.status(f"{state}: {reason}")
            case "NameOwnerChanged", (names.BUS_NAME, *_):
                # A daemon that takes over has all tunnels before it has its name.
                served = _is_served(client, tunnel)


def _is_served(client: Client, tunnel: _Tunnel) -> bool:
    """Is there a daemon now? Raises Failure if that one does not have the tunnel, or has it no
    longer up."""
    try:
        found = client.properties(tunnel.path)
    except Failure as failure:
        if failure.status == UNREACHABLE:
            notify.status("waiting for wg4netnsd, which ended; the tunnel is as it was")
            return False
        found = {}
    if found.get("CreatedUSec") != tunnel.created_usec:
        raise Failure(f"{tunnel.name} was lost: wg4netnsd does not have it any more")
    if found["State"] == "failed":
        raise _failed(tunnel, found["LastError"][1])
    notify.status(_summary(found))
    return True


def _failed(tunnel: _Tunnel, reason: str) -> Failure:
    return Failure(f"{tunnel.name} has failed: {reason}")


def _summary(found: dict[str, Any]) -> str:
    return f"{found['State']}: {found['Interface']} has {', '.join(found['Addresses'])}"


def _reconnected() -> Client:
    """Raises Failure if the bus does not come back."""
    deadline = time.monotonic() + SUCCESSION_TIME
    while True:
        try:
            return Client()
        except Failure:
            if time.monotonic() > deadline:
                raise
        time.sleep(RECONNECT_TIME)


def _close() -> None:
    """End the tunnel that our namespace has, be it complete or not, and wait for that: only then
    its name is free for the next one."""
    # On a connection of its own: a signal may have cut the other one short anywhere. What can't be
    # reached any more has our end to end by, its lease.
    with contextlib.suppress(Failure), Client() as client:
        asked = (names.ROOT_PATH, names.MANAGER, "GetTunnelByNetns", "h", namespaces.own_netns())
        (path,) = client.call(*asked, start=False)
        client.call(path, names.TUNNEL, "Close", start=False)
