"""Those who watch the daemon: `busctl monitor`, `gdbus monitor` and a client of GLib's."""

import contextlib
import json
import os
import re
import subprocess
import threading
from typing import Any, NamedTuple, Self

from jeepney import HeaderFields

from support.bus import NAME, ROOT, TUNNEL, Client
from support.processes import wait_for
from support.rules import MatchRules

Message = dict[str, Any]
"""One of the bus's, as `busctl --json=short monitor` prints it."""


class Signal(NamedTuple):
    """One of the daemon's."""

    path: str
    interface: str
    member: str
    body: Any
    """As the program shows it: JSON of busctl's, GVariant text of gdbus's."""


class _Watcher:
    """A program that prints what it sees, line by line, until it is closed."""

    def __init__(self, address: str, *command: str) -> None:
        self._errors = os.memfd_create("errors")
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": address},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        """All that it has printed, complaints too."""
        complaints = os.pread(self._errors, 65536, 0)  # a seek would be the program's too
        return "\n".join([*self.lines, complaints.decode()])

    def assert_runs(self) -> None:
        assert self.process.poll() is None, f"{self.process.args} ended:\n{self.text}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()
        os.close(self._errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if not failed:
                self.assert_runs()
        finally:
            self.close()


class Busctl(_Watcher):
    """`busctl monitor`: whole messages, by default all to and from the daemon."""

    def __init__(self, address: str, match: str | None = None) -> None:
        """`match`: what to watch instead, a rule of the bus's."""
        self._client = Client(address)
        options = [f"--address={address}", "--json=short"]
        if match is None:
            command = [*options, "monitor", NAME]
        else:
            mine = f"type='method_return',destination='{self._client.unique_name}'"  # see catch_up
            command = [*options, f"--match={match}", f"--match={mine}", "monitor"]
        super().__init__(address, "busctl", *command)
        try:
            wait_for(self._listens, "busctl listens")
        except BaseException:
            self.close()
            raise

    def _listens(self) -> bool:
        self.assert_runs()
        self._ping()
        return bool(self.lines)

    def _ping(self) -> int:
        """The serial number of the call, which its reply names."""
        ping = Client.message(ROOT, "org.freedesktop.DBus.Peer", "Ping")
        return int(self._client.exchange(ping).header.fields[HeaderFields.reply_serial])

    def catch_up(self) -> list[Message]:
        """Every message up to now but our own. The daemon's reply to a call of ours comes after
        all that it had sent before, and the bus keeps that order for those who watch."""
        serial = self._ping()
        wait_for(
            lambda: any(
                message.get("reply_cookie") == serial and self._is_ours(message)
                for message in self._messages()
            ),
            "busctl shows what is on the bus",
        )
        return [message for message in self._messages() if not self._is_ours(message)]

    def _messages(self) -> list[Message]:
        self.assert_runs()
        return [json.loads(line) for line in list(self.lines)]

    def _is_ours(self, message: Message) -> bool:
        return self._client.unique_name in (message.get("sender"), message.get("destination"))

    def signals(self) -> list[Signal]:
        """The daemon's, up to now."""
        return [as_signal(each) for each in self.catch_up() if each["type"] == "signal"]

    def close(self) -> None:
        self._client.close()
        super().close()


def as_signal(message: Message) -> Signal:
    body = message["payload"]["data"]
    return Signal(message["path"], message["interface"], message["member"], body)


class Gdbus(_Watcher):
    """`gdbus monitor`: the signals of the daemon."""

    _LINE = re.compile(r"(/\S*): (\S+)\.(\w+) (.*)")

    def __init__(self, address: str) -> None:
        with contextlib.closing(MatchRules(address)) as rules, Client(address) as client:
            super().__init__(address, "gdbus", "monitor", "--session", "--dest", NAME)
            try:
                wait_for(lambda: self._listens(client, rules), "gdbus listens")
            except BaseException:
                self.close()
                raise

    def _listens(self, client: Client, rules: MatchRules) -> bool:
        """It subscribes only after it has said who owns the name, so its rules are looked at."""
        self.assert_runs()
        owner = client.bus("GetNameOwner", "s", NAME)
        return any(
            f"sender='{owner}'" in rule
            for name in client.bus("ListNames")
            if client.bus("GetConnectionUnixProcessID", "s", name) == self.process.pid
            for rule in rules.of(name)
        )

    def signals(self) -> list[Signal]:
        """Those that it has shown so far."""
        self.assert_runs()
        shown = [self._LINE.fullmatch(line) for line in list(self.lines)]
        return [Signal(*match.groups()) for match in shown if match]


class Gio(_Watcher):
    """A Gio.DBusObjectManagerClient, that tells what it is told and what it then believes.

    `events` are dicts of `event`, `path` and more; the program below says what."""

    def __init__(self, address: str) -> None:
        """Returns when the client is complete, be there a daemon or not."""
        # Debian's, as python3-gi belongs to that.
        super().__init__(address, "/usr/bin/python3", "-c", _GIO, NAME, ROOT, TUNNEL)
        try:
            self.wait_event("started")
        except BaseException:
            self.close()
            raise

    @property
    def events(self) -> list[dict[str, Any]]:
        self.assert_runs()
        return [json.loads(line) for line in list(self.lines)]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == name]

    def wait_event(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The first one with all these."""
        return wait_for(
            lambda: next((e for e in self.of(name) if wanted.items() <= e.items()), {}),
            f"GLib tells {name} {wanted}",
        )


# An object manager's proxies only forget a property that is invalidated; the second proxy here is
# of those that ask for it anew.
_GIO = """
import json, sys
import gi
gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib

name, root, interface = sys.argv[1:]
fetching = {}

def tell(event, path, **more):
    print(json.dumps({"event": event, "path": path} | more), flush=True)

def cached(proxy):
    names = proxy.get_cached_property_names() or []
    return {each: proxy.get_cached_property(each).unpack() for each in names}

def all_of(object_):
    return {each.get_interface_name(): cached(each) for each in object_.get_interfaces()}

def added(manager, object_):
    path = object_.get_object_path()
    tell("object-added", path, interfaces=all_of(object_))
    flags = Gio.DBusProxyFlags.GET_INVALIDATED_PROPERTIES
    Gio.DBusProxy.new_for_bus(
        Gio.BusType.SESSION, flags, None, name, path, interface, None, made, path
    )

def made(source, result, path):
    try:
        fetching[path] = Gio.DBusProxy.new_for_bus_finish(result)
    except GLib.Error as error:
        return tell("gone", path, error=error.message)
    fetching[path].connect("g-properties-changed", fetched)
    tell("fetching", path, cached=cached(fetching[path]))

def fetched(proxy, changed, invalidated):
    tell("fetched", proxy.get_object_path(), changed=changed.unpack(), cached=cached(proxy))

def removed(manager, object_):
    fetching.pop(object_.get_object_path(), None)
    tell("object-removed", object_.get_object_path())

def changed(manager, object_, proxy, values, invalidated):
    more = {"interface": proxy.get_interface_name(), "cached": cached(proxy)}
    values = values.unpack()
    tell("changed", object_.get_object_path(), values=values, invalidated=invalidated, **more)

def signalled(manager, object_, proxy, sender, member, parameters):
    more = {"interface": proxy.get_interface_name(), "cached": cached(proxy)}
    body = parameters.unpack()
    tell("signal", object_.get_object_path(), member=member, body=body, **more)

def objects(manager):
    return {each.get_object_path(): all_of(each) for each in manager.get_objects()}

def owned(manager, _):
    tell("name-owner", root, owner=manager.get_property("name-owner"), objects=objects(manager))

manager = Gio.DBusObjectManagerClient.new_for_bus_sync(
    Gio.BusType.SESSION,
    Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START,
    name, root, None, None, None,
)
manager.connect("object-added", added)
manager.connect("object-removed", removed)
manager.connect("interface-proxy-properties-changed", changed)
manager.connect("interface-proxy-signal", signalled)
manager.connect("notify::name-owner", owned)
tell("started", root, owner=manager.get_property("name-owner"), objects=objects(manager))
GLib.MainLoop().run()
"""


def changes(signals: list[Signal]) -> list[tuple[dict[str, Any], list[str]]]:
    """Of each PropertiesChanged the new values, and the names of what was invalidated."""
    return [
        ({name: value["data"] for name, value in each.body[1].items()}, each.body[2])
        for each in signals
        if each.member == "PropertiesChanged"
    ]


def assert_a_chain(signals: list[Signal], member: str) -> None:
    """Each begins where the last one ended, and ends elsewhere."""
    at, state = {"StateChanged": (0, "starting"), "PeerStateChanged": (1, "idle")}[member]
    bodies = [each.body for each in signals if each.member == member]
    assert bodies
    for body in bodies:
        new, old = body[at : at + 2]
        assert old == state != new, bodies
        state = new
