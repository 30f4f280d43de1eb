"""What a TUN's fd tells about its interface, from whatever namespace one asks."""

from __future__ import annotations

import errno
import fcntl
import select
from typing import Final

TUNGETIFF: Final = 0x800454D2  # linux/if_tun.h
IFREQ_SIZE: Final = 40  # struct ifreq of linux/if.h; it begins with a name of 16 bytes


def is_gone(tun_fd: int) -> bool:
    """Has the interface been deleted under its fd? (tun_chr_poll() then gives EPOLLERR.)"""
    poll = select.poll()
    poll.register(tun_fd, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def name(tun_fd: int) -> str:
    """The interface's name now, as the namespace's owner may rename it; empty where it is gone."""
    try:
        answer = fcntl.ioctl(tun_fd, TUNGETIFF, bytes(IFREQ_SIZE))
    except OSError as error:
        if error.errno != errno.EBADFD:
            raise
        return ""
    return answer[:16].rstrip(b"\0").decode()
