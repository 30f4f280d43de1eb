"""`wg4netnsctl monitor`: print events of tunnels and their peers as they happen."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
from argparse import Namespace as Arguments
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from wg4netnsd import names
from wg4netnsd.ctl import colours
from wg4netnsd.ctl.changes import Changes, Event
from wg4netnsd.ctl.client import Client, Signal, now_usec
from wg4netnsd.ctl.colours import paint
from wg4netnsd.ctl.failure import UNREACHABLE, Failure, NotRunning
from wg4netnsd.kernel import signals


def run(arguments: Arguments) -> None:
    """Run until interrupted, or until the reader of our output has gone."""
    wanted, as_json = arguments.names, arguments.json
    # Not by sys.exit(): Python would flush to a reader that may never read.
    signals.catch((signal.SIGINT, signal.SIGTERM), lambda *_: os._exit(0))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the locale has no arrow
    lines = Lines(wanted, arguments.full)
    try:
        with Client() as client:
            for events in _events(client, Changes(wanted)):
                lines.make_room(events)
                for event in events:
                    print(lines.json(event) if as_json else lines.human(event), flush=True)
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _events(client: Client, changes: Changes) -> Iterator[list[Event]]:
    """Yield a list of events whenever there are some."""
    client.listen()
    yield _snapshot(client, changes)
    for heard in _signals(client, sys.stdout.fileno()):
        if not _changes_owner(heard):
            yield list(changes.apply(heard))
            continue
        yield list(changes.stopped(heard.usec))
        if _new_owner(heard):
            yield _snapshot(client, changes)


def _signals(client: Client, output: int) -> Iterator[Signal]:
    """Raises BrokenPipeError as soon as `output` has no reader, even without a signal to print."""
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    poll.register(output, 0)  # POLLERR and POLLHUP come unasked
    while True:
        with suppress(TimeoutError):  # no more have arrived
            while True:
                yield client.next_signal(0)
        if output in dict(poll.poll()):
            raise BrokenPipeError


def _snapshot(client: Client, changes: Changes) -> list[Event]:
    """The present state; asked for again if the daemon came or went meanwhile."""
    events: list[Event] = []
    early: list[Signal] = []
    while True:
        usec = now_usec()
        objects = _managed_objects(client)
        early += client.pop_signals()
        comings = [i for i, heard in enumerate(early) if _changes_owner(heard)]
        if not comings:
            break
        events += changes.stopped(early[comings[-1]].usec)
        early = early[comings[-1] + 1 :]
    if objects is None:
        return [*events, *changes.stopped(usec)]
    return [*events, *changes.started(usec), *changes.snapshot(objects, usec, early)]


def _managed_objects(client: Client) -> dict[str, Any] | None:
    """None if no daemon runs; empty if it is just ending, which a signal will say."""
    interface = "org.freedesktop.DBus.ObjectManager"
    try:
        (objects,) = client.call(names.ROOT_PATH, interface, "GetManagedObjects", start=False)
    except NotRunning:
        return None
    except Failure as failure:
        if failure.status == UNREACHABLE:
            return {}
        raise
    return dict(objects)


def _changes_owner(heard: Signal) -> bool:
    return heard.member == "NameOwnerChanged"


def _new_owner(heard: Signal) -> str:
    return str(heard.body[2])


class Lines:
    """The lines that events are printed as."""

    def __init__(self, wanted: Iterable[str], full: bool) -> None:
        self._full = full
        self._ran = False
        self._width = max(map(len, wanted), default=0)

    def make_room(self, events: Iterable[Event]) -> None:
        """Widen the column of names so that these and later events are aligned."""
        self._width = max(self._width, *(len(event.tunnel or "") for event in events), 0)

    def human(self, event: Event) -> str:
        """TIME  TUNNEL  PEER  what happened"""
        time = paint(_local_time(event.usec), colours.FAINT)
        prose = paint(self._prose(event), colours.OF_STATE.get(event.state))
        if event.tunnel is None:
            return f"{time}  {prose}"
        return f"{time}  {paint(f'{event.tunnel:<{self._width}}', colours.BOLD)}  {prose}"

    def json(self, event: Event) -> str:
        """For jq and waybar."""
        known = {key: value for key, value in asdict(event).items() if value is not None}
        state, usec = known.pop("state"), known.pop("usec")
        time = datetime.fromtimestamp(usec // 1_000_000, UTC).replace(microsecond=usec % 1_000_000)
        prose = self._prose(event)
        about = [event.tunnel, self._peer(event), state if event.tunnel else prose]
        subject = [event.tunnel] if event.tunnel else []
        shown = {
            "text": " ".join(part for part in about if part),
            "alt": state,
            "class": state,
            "tooltip": "  ".join([_local_time(usec), *subject, prose]),
        }
        stamp = time.isoformat(timespec="microseconds").replace("+00:00", "Z")
        first = {"event": known.pop("event"), "time": stamp}
        return json.dumps(first | known | shown, separators=(",", ":"))

    def _prose(self, event: Event) -> str:
        what = _printable(self._what(event))
        return f"{self._peer(event)}  {what}" if event.peer else what

    def _peer(self, event: Event) -> str:
        if event.peer is None or self._full:
            return event.peer or ""
        return f"{event.peer[:8]}…"

    def _what(self, event: Event) -> str:
        match event.event:
            case "daemon-started":
                again, self._ran = self._ran, True
                return "wg4netnsd is running again" if again else "wg4netnsd is running"
            case "daemon-stopped":
                return "wg4netnsd is not running"
            case "tunnel-added":
                added = f"{event.new}" if event.snapshot else f"added, {event.new}"
                return f"{added}{_via(*event.transit or ())}"
            case "tunnel-removed":
                return f"removed: {event.reason}" if event.reason else "removed"
            case "tunnel-state":
                return f"{event.old} → {event.new}: {event.reason}"
            case "error":
                return f"error: {event.reason}"
            case "peer-state" if event.snapshot:
                return f"{event.new}{_at(event.endpoint)}{_last_handshake(event)}"
            case "peer-state":
                return f"{event.old} → {event.new}{_missed(event.missed)}"
            case "peer-endpoint":
                moved = f"{event.old or 'unknown'} → {event.new or 'unknown'}"
                return f"endpoint {moved}{_missed(event.missed)}"
            case _:
                role = f" as {event.role}" if event.role else ""
                return f"handshake{role}{_at(event.endpoint)}{_missed(event.missed)}"


def _local_time(usec: int) -> str:
    return datetime.fromtimestamp(usec // 1_000_000).strftime("%H:%M:%S")


def _at(endpoint: str | None) -> str:
    return f", at {endpoint}" if endpoint else ""


def _via(kind: str = "host", detail: str = "") -> str:
    return "" if kind == "host" else f", via {kind} {detail}".rstrip()


def _last_handshake(event: Event) -> str:
    if not event.last_handshake_usec:
        return ", no handshake yet"
    seconds = max(0, event.usec - event.last_handshake_usec) // 1_000_000
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f", handshake {seconds // length} {unit} ago"
    return f", handshake {seconds} s ago"


def _missed(count: int | None) -> str:
    return f" ({count} more before)" if count else ""


def _printable(text: str) -> str:
    """A single line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in text)
