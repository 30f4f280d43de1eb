"""A file system whose files can stall: every system call on them waits in the kernel.

It speaks the protocol of /dev/fuse (linux/fuse.h) itself, in a user namespace, so that it needs
neither root nor a library. Run as a program, this file is its server.
"""

import ctypes
import errno
import os
import select
import struct
import subprocess
import sys
from collections.abc import Container
from pathlib import Path
from typing import Self

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE = 1, 2, 3, 14, 15, 18
FLUSH, INIT, INTERRUPT, BATCH_FORGET = 25, 26, 36, 42
HEADER = 40  # bytes
DIRECTORY, FILE = 0o040755, 0o100600
FILE_NODE = 2  # the root's is 1
MNT_DETACH = 2
READY = b"ready\n"


class StallingFiles:
    """A directory with one file, of the given name. It answers until stall(), and then never."""

    def __init__(self, name: str = "wg.conf", text: bytes = b"") -> None:
        self.name = name
        self._server = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(text + b"\0")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == READY
        self.path = Path(f"/proc/{self._server.pid}/root/mnt/{name}")

    def _tell(self, command: bytes) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(command)
        self._server.stdin.flush()
        assert self._server.stdout.readline() == READY

    def detach(self) -> None:
        """Unmount it, so that nobody finds it by a path. Open files stay; their paths get short."""
        self._tell(b"d")

    def stall(self, close_hangs: bool = False) -> None:
        """Give no answers from now on; unless `close_hangs`, close(2) gets one.

        The bus closes what it has passed on. Where that hangs, the bus hangs first.
        """
        self._tell(b"S" if close_hangs else b"s")

    def close(self) -> None:
        """End it. The kernel then ends what waits for it (ENOTCONN)."""
        self._server.kill()
        self._server.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---------------------------------------------------------------- the server


def serve(name: bytes) -> None:
    text = b""
    while not text.endswith(b"\0"):
        text += os.read(0, 65536)
    text = text[:-1]
    device = os.open("/dev/fuse", os.O_RDWR)
    call(
        "mount",
        b"stalling",
        b"/mnt",
        b"fuse",
        0,
        b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device,
    )
    unanswered: Container[int] = ()
    os.write(1, READY)
    while True:
        ready, _, _ = select.select([0, device], [], [])
        if 0 in ready:
            match os.read(0, 1):
                case b"d":
                    call("umount2", b"/mnt", MNT_DETACH)
                case b"S":
                    unanswered = range(100)
                case b"s":
                    unanswered = set(range(100)) - {FLUSH}
                case _:
                    return
            os.write(1, READY)
        else:
            request = os.read(device, 1 << 18)
            (opcode,) = struct.unpack_from("=I", request, 4)
            if opcode not in unanswered and (reply := answer(request, name, text)):
                os.write(device, reply)


def answer(request: bytes, name: bytes, text: bytes) -> bytes | None:
    """Return the reply to a request of the kernel's; None if nobody waits for one."""
    _, opcode, unique, node, *_ = struct.unpack_from("=IIQQIIII", request)
    body, error = b"", 0
    if opcode == INIT:
        body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0)
    elif opcode == LOOKUP:
        if request[HEADER:].rstrip(b"\0") == name:
            body = struct.pack("=QQQQII", FILE_NODE, *bytes(5)) + attributes(FILE_NODE, text)
        else:
            error = -errno.ENOENT
    elif opcode == GETATTR:
        body = struct.pack("=QII", 0, 0, 0) + attributes(node, text)
    elif opcode == OPEN:
        body = bytes(16)
    elif opcode == READ:
        offset, size = struct.unpack_from("=QI", request, HEADER + 8)
        body = text[offset : offset + size]
    elif opcode in (FORGET, INTERRUPT, BATCH_FORGET):
        return None
    elif opcode not in (FLUSH, RELEASE):
        error = -errno.ENOSYS
    return struct.pack("=IiQ", 16 + len(body), error, unique) + body


def attributes(node: int, text: bytes) -> bytes:
    """Return a struct fuse_attr, which nobody may keep."""
    mode, size = (FILE, len(text)) if node == FILE_NODE else (DIRECTORY, 0)
    return struct.pack("=6Q10I", node, size, 1, *bytes(6), mode, 1, *bytes(3), 4096, 0)


def call(function: str, *arguments: bytes | int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments):
        sys.exit(f"{function}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    serve(sys.argv[1].encode())
