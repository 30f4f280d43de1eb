#!/usr/bin/python3
"""Run a service whose listening socket is in a tunnel:  listen.py TUNNEL PORT COMMAND…

The service gets the socket as it would from systemd; see sd_listen_fds(3).
"""

import os
import socket
import sys

from gi.repository import Gio, GLib

path = f"/org/wg4netns1/tunnel/{sys.argv[1]}"
kind = GLib.Variant("(iii)", (socket.AF_INET6, socket.SOCK_STREAM, 0))  # IPv6, and so IPv4 as well
_, fds = Gio.bus_get_sync(Gio.BusType.SESSION).call_with_unix_fd_list_sync(
    *("org.wg4netns1", path, "org.wg4netns1.Tunnel", "OpenSocket"),
    *(kind, None, Gio.DBusCallFlags.NONE, -1, None, None),
)
listening = socket.socket(fileno=fds.get(0))
listening.bind(("::", int(sys.argv[2])))
listening.listen()
os.dup2(listening.fileno(), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execvp(sys.argv[3], sys.argv[3:])
