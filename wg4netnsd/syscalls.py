"""What Python 3.11 has no function for, one tiny wrapper a syscall."""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final

CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h
CLONE_NEWNET: Final = 0x40000000
NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h
NS_GET_NSTYPE: Final = 0xB703
PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
PR_SET_NAME: Final = 15
TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0001, 0x1000, 0x4000, 0x8000

_libc = ctypes.CDLL(None, use_errno=True)


def ioctl(fd: int, request: int, argument: int | bytes, operation: str) -> int:
    """ioctl(2), whose OSError names the operation. Returns an fd for some requests, else 0."""
    try:
        result = fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, operation) from None
    return result if isinstance(result, int) else 0  # a bytes argument comes back changed


def setns(fd: int, nstype: int) -> None:
    """setns(2); Python has it from 3.12 on."""
    if _libc.setns(fd, nstype) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


def prctl(option: int, argument: int | bytes) -> None:
    """prctl(2) with one argument."""
    pointer = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc.prctl(option, pointer, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl")
