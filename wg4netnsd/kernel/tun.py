"""A TUN's fd as the source of facts about its interface, from any namespace."""

from __future__ import annotations

import errno
import fcntl
import select
import struct
from typing import Final

from wg4netnsd.kernel.syscalls import SIOCGSKNS, TUNGETDEVNETNS, ioctl

DEVICE: Final = "/dev/net/tun"
TUNGETIFF: Final = 0x800454D2  # linux/if_tun.h
IFREQ_SIZE: Final = 40  # struct ifreq of linux/if.h; it begins with a name of 16 bytes


def ifreq(name: str, flags: int) -> bytes:
    """Encode the struct ifreq of TUNSETIFF: a name of 16 bytes, then a union of 24 that begins with
    the flags."""
    return struct.pack("16sH22x", name.encode(), flags)


def is_gone(tun_fd: int) -> bool:
    """Has the interface been deleted while its fd is open? tun_chr_poll() then gives EPOLLERR."""
    poll = select.poll()
    poll.register(tun_fd, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def name(tun_fd: int) -> str:
    """Return the interface's name, which the namespace's owner may change; empty if it is gone."""
    try:
        answer = fcntl.ioctl(tun_fd, TUNGETIFF, bytes(IFREQ_SIZE))
    except OSError as error:
        if error.errno != errno.EBADFD:
            raise
        return ""
    return answer[:16].rstrip(b"\0").decode(errors="surrogateescape")


def netns_fd(tun_fd: int) -> int:
    """Open the namespace that the interface is in; the kernel makes the fd close-on-exec.

    Raises OSError if the interface or its namespace has ended: EBADFD, or EINVAL for a moment.
    Linux before 5.2 does not know the request: EINVAL.
    """
    return ioctl(tun_fd, TUNGETDEVNETNS, 0, "TUNGETDEVNETNS")


def home_fd(tun_fd: int) -> int:
    """Open the namespace that the TUN was opened in and keeps alive. Raises OSError."""
    return ioctl(tun_fd, SIOCGSKNS, 0, "SIOCGSKNS")
