#!/usr/bin/env -S gjs -m
// Print a line for each change of a tunnel or of one of its peers.

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

const NAME = 'org.wg4netns1', ROOT = '/org/wg4netns1', TUNNEL = 'org.wg4netns1.Tunnel';
const STATES = ['starting', 'up', 'restarting', 'failed', 'stopping', 'closed',
    'idle', 'handshaking', 'active', 'stale']; // the peers' states
const names = new Map(); // tunnels' names by path: an applet keeps its menu entries here

function say(path, state, of = '') {
    print(`${names.get(path)}: ${of}${STATES.includes(state) ? state : 'unknown'}`);
}

function added(_manager, object) {
    const path = object.get_object_path(), tunnel = object.get_interface(TUNNEL);
    if (!tunnel) // later versions may have other kinds of objects
        return;
    names.set(path, tunnel.get_cached_property('Name').unpack());
    say(path, tunnel.get_cached_property('State').unpack());
    const peers = tunnel.get_cached_property('Peers').recursiveUnpack();
    for (const [key, peer] of Object.entries(peers))
        say(path, peer.state, `peer ${key.slice(0, 4)}… `);
}

function removed(_manager, object) { // if the daemon has ended, without "closed" before it
    print(`${names.get(object.get_object_path())}: gone`);
    names.delete(object.get_object_path());
}

function signalled(_manager, _object, proxy, _sender, member, parameters) {
    const [first, second] = parameters.recursiveUnpack();
    if (member === 'StateChanged')
        say(proxy.get_object_path(), first);
    else if (member === 'PeerStateChanged')
        say(proxy.get_object_path(), second, `peer ${first.slice(0, 4)}… `);
}

const flags = Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START;
const manager = Gio.DBusObjectManagerClient.new_for_bus_sync( // new_for_bus() does not block
    Gio.BusType.SESSION, flags, NAME, ROOT, null, null);
manager.connect('object-added', added);
manager.connect('object-removed', removed);
manager.connect('interface-proxy-signal', signalled);
print(`wg4netnsd: ${manager.name_owner ? 'running' : 'not running'}`);
manager.get_objects().forEach(each => added(manager, each));
new GLib.MainLoop(null, false).run();
