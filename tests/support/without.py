"""Runs a command with a system call that fails, as a container's filter or an older kernel has it:

without.py NUMBER ERROR COMMAND…
"""

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

SECCOMP, PRCTL = {"x86_64": (317, 157), "aarch64": (277, 167)}[os.uname().machine]
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LD_NR, JEQ, RET, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x50000, 0x7FFF0000


def without(number: int, error: int = errno.EPERM) -> list[str]:
    """To put before a command."""
    return [sys.executable, "-I", str(Path(__file__)), str(number), str(error)]


def main() -> None:
    number, error = map(int, sys.argv[1:3])
    instructions = (
        (LD_NR, 0, 0, 0),
        (JEQ, 0, 1, number),
        (RET, 0, 0, ERRNO | error),
        (RET, 0, 0, ALLOW),
    )
    program = b"".join(struct.pack("HBBI", *each) for each in instructions)
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0) == 0
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
