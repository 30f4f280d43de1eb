#!/usr/bin/python3
"""Prints a line for each change of a tunnel or of one of its peers, until SIGINT or SIGTERM."""

import signal

from gi.repository import Gio, GLib

NAME, ROOT, TUNNEL = "org.wg4netns1", "/org/wg4netns1", "org.wg4netns1.Tunnel"
STATES = ("starting", "up", "restarting", "failed", "stopping", "closed")
PEER_STATES = ("idle", "handshaking", "active", "stale")


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
        for tunnel in self.manager.get_objects():
            self.added(self.manager, tunnel)

    def owned(self, manager, _property=None):
        running = manager.props.name_owner is not None
        if running != self.running:  # GLib tells of "none" again before it tells of a new one
            print("wg4netnsd:", "running" if running else "not running", flush=True)
        self.running = running

    def added(self, _manager, tunnel):
        path, proxy = tunnel.get_object_path(), tunnel.get_interface(TUNNEL)
        self.names[path] = proxy.get_cached_property("Name").unpack()
        self.say(path, proxy.get_cached_property("State").unpack(), STATES)
        for key, peer in proxy.get_cached_property("Peers").unpack().items():
            self.say(path, peer["state"], PEER_STATES, f"peer {key[:4]}… ")

    def removed(self, _manager, tunnel):  # "closed" came before, unless the daemon is gone
        del self.names[tunnel.get_object_path()]

    def signalled(self, _manager, tunnel, _proxy, _sender, member, parameters):
        match member, *parameters.unpack():
            case "StateChanged", new, _old, _reason:
                self.say(tunnel.get_object_path(), new, STATES)
            case "PeerStateChanged", key, new, _old, _details:
                self.say(tunnel.get_object_path(), new, PEER_STATES, f"peer {key[:4]}… ")

    def say(self, path, state, known, of=""):
        shown = state if state in known else "unknown"
        print(f"{self.names[path]}: {of}{shown}", flush=True)


applet = Applet()
loop = GLib.MainLoop()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: loop.quit())
loop.run()
