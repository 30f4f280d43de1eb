#!/usr/bin/python3
"""Print a line for each change of a tunnel or of one of its peers, until SIGINT or SIGTERM."""

import signal

from gi.repository import Gio, GLib

NAME, ROOT, TUNNEL = "org.wg4netns1", "/org/wg4netns1", "org.wg4netns1.Tunnel"
STATES = {"starting", "up", "restarting", "failed", "stopping", "closed"}
STATES |= {"idle", "handshaking", "active", "stale"}  # the peers' states
names = {}  # tunnels' names by path: an applet keeps its menu entries here


def say(path, state, of=""):
    print(f"{names[path]}: {of}{state if state in STATES else 'unknown'}", flush=True)


def added(_manager, new):
    path, tunnel = new.get_object_path(), new.get_interface(TUNNEL)
    if tunnel:  # later versions may have other kinds of objects
        names[path] = tunnel.get_cached_property("Name").unpack()
        say(path, tunnel.get_cached_property("State").unpack())
        for key, peer in tunnel.get_cached_property("Peers").unpack().items():
            say(path, peer["state"], f"peer {key[:4]}… ")


def removed(_manager, gone):  # if the daemon has ended, without "closed" before it
    print(f"{names.pop(gone.get_object_path())}: gone", flush=True)


def signalled(_manager, _object, proxy, _sender, member, parameters):
    match member, *parameters.unpack():
        case "StateChanged", new, _old, _reason:
            say(proxy.get_object_path(), new)
        case "PeerStateChanged", key, new, _old, _details:
            say(proxy.get_object_path(), new, f"peer {key[:4]}… ")


flags = Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START
where = (Gio.BusType.SESSION, flags, NAME, ROOT)  # a GUI uses new_for_bus(), which does not block
manager = Gio.DBusObjectManagerClient.new_for_bus_sync(*where, None, None, None)
handlers = {"object-added": added, "object-removed": removed, "interface-proxy-signal": signalled}
for event, handler in handlers.items():
    manager.connect(event, handler)
print("wg4netnsd:", "running" if manager.props.name_owner else "not running", flush=True)
for each in manager.get_objects():
    added(manager, each)
loop = GLib.MainLoop()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: loop.quit())
loop.run()
