#!/usr/bin/env -S gjs -m
// Prints a line for each change of a tunnel or of one of its peers, until SIGINT or SIGTERM.

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

const NAME = 'org.wg4netns1', ROOT = '/org/wg4netns1', TUNNEL = 'org.wg4netns1.Tunnel';
const KNOWN = ['starting', 'up', 'restarting', 'failed', 'stopping', 'closed', // of a tunnel
    'idle', 'handshaking', 'active', 'stale']; // of a peer
const names = new Map(); // of tunnels, by path: an applet has its menu's entries here
let manager, daemon;

function ready(_source, result) {
    manager = Gio.DBusObjectManagerClient.new_for_bus_finish(result);
    manager.connect('notify::name-owner', owned);
    manager.connect('object-added', added);
    manager.connect('object-removed', removed);
    manager.connect('interface-proxy-signal', signalled);
    owned();
    manager.get_objects().forEach(each => added(manager, each));
}

function owned() {
    const state = manager.name_owner ? 'running' : 'not running';
    if (state !== daemon) // GLib tells of "none" again before it tells of a new one
        print(`wg4netnsd: ${state}`);
    daemon = state;
}

function added(_manager, object) {
    const path = object.get_object_path(), tunnel = object.get_interface(TUNNEL);
    if (!tunnel) // later versions may have objects of other kinds
        return;
    names.set(path, tunnel.get_cached_property('Name').unpack());
    say(path, tunnel.get_cached_property('State').unpack());
    const peers = tunnel.get_cached_property('Peers').recursiveUnpack();
    for (const [key, peer] of Object.entries(peers))
        say(path, peer.state, `peer ${key.slice(0, 4)}… `);
}

function removed(_manager, object) { // "closed" came before, unless the daemon is gone
    names.delete(object.get_object_path());
}

function signalled(_manager, _object, proxy, _sender, member, parameters) {
    const path = proxy.get_object_path(), [first, second] = parameters.recursiveUnpack();
    switch (`${proxy.get_interface_name()}.${member}`) {
    case `${TUNNEL}.StateChanged`:
        return say(path, first);
    case `${TUNNEL}.PeerStateChanged`:
        return say(path, second, `peer ${first.slice(0, 4)}… `);
    }
}

function say(path, state, of = '') {
    print(`${names.get(path)}: ${of}${KNOWN.includes(state) ? state : 'unknown'}`);
}

Gio.DBusObjectManagerClient.new_for_bus(Gio.BusType.SESSION,
    Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START, NAME, ROOT, null, null, ready);
const loop = new GLib.MainLoop(null, false);
for (const number of [2, 15]) // SIGINT, SIGTERM
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, number, () => loop.quit());
loop.run();
