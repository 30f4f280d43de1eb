"""Runs a command with its look-ups confined: confined.py RESOLV_CONF COMMAND…

In a mount namespace of its own, which `unshare` has made.
"""

import os
import sys

from wg4netnsd.ctl import lookups, mounts

mounts.isolate()
lookups.confine(sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])
