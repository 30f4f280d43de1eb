"""`up --foreground`: a tunnel as a service. The tunnel ends with this process, and vice versa.

    systemd ──SIGTERM──► we ───Close────► the daemon      we end when nothing of the tunnel is left
                         ▲                    │
                         └─── StateChanged ───┘           closed: we end; failed: and say why

Daemon and bus may be restarted meanwhile: the next daemon takes the tunnel over.
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
"""Seconds that systemd gets to restart daemon and bus. It gives up sooner, after 10 tries; the
tunnel has then ended."""
RECONNECT_TIME: Final = 0.2
"""Seconds between two tries: no event tells when there is a bus to connect to."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal told us to end. Not an Exception, so that no handler on the way catches it."""


class _Tunnel(NamedTuple):
    path: str
    name: str
    created_usec: int


def run(arguments: Arguments) -> int:
    """Return 0 when the tunnel was closed, by a signal to us or otherwise. Raises Failure if it
    failed."""
    signals.catch(_ENDING, _stop)
    with contextlib.suppress(_Stopped), contextlib.ExitStack() as at_end:
        try:
            client, tunnel = _up(arguments, at_end)
            notify.ready()
            _until_it_ends(client, tunnel)
        except Failure as failure:
            notify.stopping(str(failure))
            raise
        except _Stopped:
            notify.stopping("stopped by a signal")
            raise
    return 0


def _stop(*_: object) -> None:
    for number in _ENDING:  # a second one must not cut the end short
        signal.signal(number, signal.SIG_IGN)
    raise _Stopped


def _up(arguments: Arguments, at_end: contextlib.ExitStack) -> tuple[Client, _Tunnel]:
    """Enter a new namespace and bring up a tunnel in it."""
    notify.status("waiting for the tunnel")
    with create.open_conf(arguments.conf) as conf:
        client = at_end.enter_context(Client())
        lease = os.pidfd_open(os.getpid())
        name = create.suggested_name(conf.name)
        more = {"lifetime": ("s", "lease"), "lease": ("h", lease), "trust_root": ("b", True)}
        more |= create.transit(arguments, client)
        asked = create.options(arguments, name, **more)
        namespaces.make()
        at_end.callback(_close)
        netns = namespaces.current_netns()
        path = create.finish(create.begin(client, netns, conf, asked), asked)
        os.close(netns)
        os.close(lease)
    if arguments.forwards:
        create.add_forwards(client, path, arguments)
    found = client.tunnel(path)
    notify.status(_summary(found))
    # journald learns a stream's unit from its first line, while the process exists: without this
    # one, "has ended" could arrive too late to be attributed to the unit.
    print(f"{found['Name']} is {_summary(found)}", file=sys.stderr)
    return client, _Tunnel(path, found["Name"], found["CreatedUSec"])


# ---------------------------------------------------------------- until its end


def _until_it_ends(client: Client, tunnel: _Tunnel) -> None:
    """Wait for the tunnel to be closed. Raises Failure if it has failed or was lost."""
    while True:
        try:
            with client:
                _follow(client, tunnel)
                return
        except Failure as failure:
            if failure.status != UNREACHABLE:
                raise
        client = _reconnect()


def _follow(client: Client, tunnel: _Tunnel) -> None:
    client.listen(path=tunnel.path, member="StateChanged")
    served = _is_served(client, tunnel)
    while True:
        try:
            heard = client.next_signal(None if served else SUCCESSION_TIME)
        except TimeoutError:
            text = f"{tunnel.name} was lost: wg4netnsd has ended and was not restarted"
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
                # A new daemon takes over all tunnels before it takes its name.
                served = _is_served(client, tunnel)


def _is_served(client: Client, tunnel: _Tunnel) -> bool:
    """Does a daemon run? Raises Failure if it lacks the tunnel, or the tunnel has failed."""
    try:
        found = client.tunnel(tunnel.path)
    except Failure as failure:
        if failure.status == UNREACHABLE:
            notify.status("waiting for wg4netnsd, which has ended; the tunnel stays up")
            return False
        found = {}
    if found.get("CreatedUSec") != tunnel.created_usec:
        raise Failure(f"{tunnel.name} was lost: wg4netnsd no longer has it")
    if found["State"] == "failed":
        raise _failed(tunnel, found["LastError"][1])
    notify.status(_summary(found))
    return True


def _failed(tunnel: _Tunnel, reason: str) -> Failure:
    return Failure(f"{tunnel.name} has failed: {reason}")


def _summary(found: dict[str, Any]) -> str:
    return f"{found['State']}: {found['Interface']} has {', '.join(found['Addresses'])}"


def _reconnect() -> Client:
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
    """Close our namespace's tunnel, complete or not, and wait: only then is its name free again."""
    # On a new connection: a signal may have interrupted the other one anywhere. If no daemon can be
    # reached, the tunnel's lease ends it when this process ends.
    with contextlib.suppress(Failure), Client() as client:
        asked = (
            names.ROOT_PATH,
            names.MANAGER,
            "GetTunnelByNetns",
            "h",
            namespaces.current_netns(),
        )
        (path,) = client.call(*asked, start=False)
        client.call(path, names.TUNNEL, "Close", start=False)
