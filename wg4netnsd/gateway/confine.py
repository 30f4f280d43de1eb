"""What a gateway gives up before its first client: it reads what strangers send.

Other processes of our uid can't trace it, and it dumps no core. It runs no program, reads no file
but what Python, its libraries and the C library's look-ups need, and writes none.
"""

from __future__ import annotations

import sys
from typing import Final

from wg4netnsd.gateway.log import say
from wg4netnsd.kernel import sandbox
from wg4netnsd.kernel.syscalls import (
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    prctl,
)

PROGRAM: Final = b"wg4netns-gate"
"""The gateway's name in /proc, 15 bytes at most."""

_OF_LOOK_UPS: Final = (
    "/etc",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/systemd/resolve",
)
"""What getaddrinfo(3) reads, for targets on the host."""


def confine() -> None:
    """Confine this process; log what the kernel refuses. Call it while there is one thread."""
    prctl(PR_SET_NAME, PROGRAM)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    readable = [
        *("/usr", "/lib", "/lib64", "/proc/self/fdinfo"),
        *(sys.prefix, sys.base_prefix, *filter(None, sys.path)),
        *_OF_LOOK_UPS,
    ]
    try:
        sandbox.restrict_files(readable)
    except OSError as error:
        say(f"can read and write all files of its uid: {error}")
    try:
        sandbox.deny_system_calls()
    except (OSError, ValueError) as error:
        say(f"no system call is denied: {error}")
