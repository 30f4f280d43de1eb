#!/usr/bin/env -S gjs -m
// Prints a line for each change of a tunnel or of one of its peers, until SIGINT or SIGTERM.

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

const NAME = 'org.wg4netns1', ROOT = '/org/wg4netns1', TUNNEL = 'org.wg4netns1.Tunnel';
const STATES = ['starting', 'up', 'restarting', 'failed', 'stopping', 'closed'];
const PEER_STATES = ['idle', 'handshaking', 'active', 'stale'];
let manager, daemon;
const names = new Map(); // of tunnels, by path: an applet has its menu's entries here

function say(path, state, known, of = '') {
    print(`${names.get(path)}: ${of}${known.includes(state) ? state : 'unknown'}`);
}

function owned() {
    const state = manager.name_owner ? 'running' : 'not running';
    if (state !== daemon) // GLib tells of "none" again before it tells of a new one
        print(`wg4netnsd: ${state}`);
    daemon = state;
}

function added(_manager, tunnel) {
    const path = tunnel.get_object_path(), proxy = tunnel.get_interface(TUNNEL);
    names.set(path, proxy.get_cached_property('Name').unpack());
    say(path, proxy.get_cached_property('State').unpack(), STATES);
    const peers = proxy.get_cached_property('Peers').recursiveUnpack();
    for (const [key, peer] of Object.entries(peers))
        say(path, peer.state, PEER_STATES, `peer ${key.slice(0, 4)}… `);
}

function removed(_manager, tunnel) { // "closed" came before, unless the daemon is gone
    names.delete(tunnel.get_object_path());
}

function signalled(_manager, tunnel, _proxy, _sender, member, parameters) {
    const path = tunnel.get_object_path(), [first, second] = parameters.recursiveUnpack();
    if (member === 'StateChanged')
        say(path, first, STATES);
    else if (member === 'PeerStateChanged')
        say(path, second, PEER_STATES, `peer ${first.slice(0, 4)}… `);
}

function ready(_source, result) {
    manager = Gio.DBusObjectManagerClient.new_for_bus_finish(result);
    manager.connect('notify::name-owner', owned);
    manager.connect('object-added', added);
    manager.connect('object-removed', removed);
    manager.connect('interface-proxy-signal', signalled);
    owned();
    manager.get_objects().forEach(tunnel => added(manager, tunnel));
}

Gio.DBusObjectManagerClient.new_for_bus(Gio.BusType.SESSION,
    Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START, NAME, ROOT, null, null, ready);
const loop = new GLib.MainLoop(null, false);
for (const number of [2, 15]) // SIGINT, SIGTERM
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, number, () => loop.quit());
loop.run();
