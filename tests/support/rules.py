"""The match rules that a bus keeps for its clients, counted by reading along.

The bus could tell by itself (org.freedesktop.DBus.Debug.Stats), but not every distribution builds
its dbus-daemon so, and dbus-broker has no such interface.
"""

from collections import Counter, defaultdict

from jeepney import DBusAddress, HeaderFields, Message, message_bus, new_method_call
from jeepney.io.blocking import open_dbus_connection

_BUS = "org.freedesktop.DBus"
_MONITORING = DBusAddress("/org/freedesktop/DBus", _BUS, f"{_BUS}.Monitoring")
_CHANGES = {"AddMatch": 1, "RemoveMatch": -1}
_MARKER = "type='signal',interface='org.example.Marker'"


class MatchRules:
    """A monitor of the calls that add and remove rules, which has to be there before the clients
    whose rules it is to count."""

    def __init__(self, address: str) -> None:
        self._kept: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._marking = open_dbus_connection(address)
        self._monitor = open_dbus_connection(address)
        calls = [f"type='method_call',interface='{_BUS}',member='{member}'" for member in _CHANGES]
        become = new_method_call(_MONITORING, "BecomeMonitor", "asu", (calls, 0))
        self._monitor.send_and_get_reply(become, timeout=10)

    def of(self, client: str) -> Counter[str]:
        """How often the client with that unique name has set each, and not removed it."""
        for call in (message_bus.AddMatch(_MARKER), message_bus.RemoveMatch(_MARKER)):
            self._marking.send_and_get_reply(call, timeout=10)
        # A bus works in order: with our own calls we have heard of all before them.
        while not self._take(self._monitor.receive(timeout=10)):
            pass
        return +self._kept[client]

    def _take(self, message: Message) -> bool:
        """Whether it is the last of our own calls."""
        fields = message.header.fields
        sender, member = fields[HeaderFields.sender], fields[HeaderFields.member]
        if sender == self._marking.unique_name:
            return bool(member == "RemoveMatch")
        if member in _CHANGES:  # else the bus tells the monitor that it has lost its name
            self._kept[sender][message.body[0]] += _CHANGES[member]
        return False

    def close(self) -> None:
        self._monitor.close()
        self._marking.close()
