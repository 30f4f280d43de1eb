#!/usr/bin/python3
"""Prints a line for each change of a tunnel or of one of its peers, until SIGINT or SIGTERM."""

import signal

from gi.repository import Gio, GLib

NAME, ROOT, TUNNEL = "org.wg4netns1", "/org/wg4netns1", "org.wg4netns1.Tunnel"
KNOWN = {"starting", "up", "restarting", "failed", "stopping", "closed"}  # of a tunnel
KNOWN |= {"idle", "handshaking", "active", "stale"}  # of a peer


class Applet:
    def __init__(self):
        self.running = None
        self.names = {}  # of tunnels, by path: an applet has its menu's entries here
        flags = Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START
        Gio.DBusObjectManagerClient.new_for_bus(
            Gio.BusType.SESSION, flags, NAME, ROOT, None, None, None, self.ready
        )

    def ready(self, _source, result):
        self.manager = Gio.DBusObjectManagerClient.new_for_bus_finish(result)
        self.manager.connect("notify::name-owner", self.owned)
        self.manager.connect("object-added", self.added)
        self.manager.connect("object-removed", self.removed)
        self.manager.connect("interface-proxy-signal", self.signalled)
        self.owned(self.manager)
        for each in self.manager.get_objects():
            self.added(self.manager, each)

    def owned(self, manager, _property=None):
        running = manager.props.name_owner is not None
        if running != self.running:  # GLib tells of "none" again before it tells of a new one
            print("wg4netnsd:", "running" if running else "not running", flush=True)
        self.running = running

    def added(self, _manager, added):
        path, tunnel = added.get_object_path(), added.get_interface(TUNNEL)
        if tunnel:  # later versions may have objects of other kinds
            self.names[path] = tunnel.get_cached_property("Name").unpack()
            self.say(path, tunnel.get_cached_property("State").unpack())
            for key, peer in tunnel.get_cached_property("Peers").unpack().items():
                self.say(path, peer["state"], f"peer {key[:4]}… ")

    def removed(self, _manager, removed):  # "closed" came before, unless the daemon is gone
        self.names.pop(removed.get_object_path(), None)

    def signalled(self, _manager, _object, proxy, _sender, member, parameters):
        path = proxy.get_object_path()
        match f"{proxy.get_interface_name()}.{member}", *parameters.unpack():
            case "org.wg4netns1.Tunnel.StateChanged", new, _old, _reason:
                self.say(path, new)
            case "org.wg4netns1.Tunnel.PeerStateChanged", key, new, _old, _details:
                self.say(path, new, f"peer {key[:4]}… ")

    def say(self, path, state, of=""):
        print(f"{self.names[path]}: {of}{state if state in KNOWN else 'unknown'}", flush=True)


applet = Applet()
loop = GLib.MainLoop()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: loop.quit())
loop.run()
