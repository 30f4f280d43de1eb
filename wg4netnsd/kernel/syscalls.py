"""System calls that Python 3.11 has no function for, one small wrapper each."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Final

CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h
NS_GET_NSTYPE: Final = 0xB703
SIOCGSKNS: Final = 0x894C  # linux/sockios.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # linux/mount.h
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1 << 5, 1 << 12, 1 << 14, 1 << 19
MNT_DETACH: Final = 2  # linux/fs.h
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
TFD_NONBLOCK, TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC  # linux/timerfd.h
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
TUNGETDEVNETNS: Final = 0x54E3
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0001, 0x1000, 0x4000, 0x8000

SYS_LANDLOCK_CREATE_RULESET: Final = 444  # asm-generic/unistd.h
SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
LANDLOCK_CREATE_RULESET_VERSION: Final = 1  # linux/landlock.h

_libc = ctypes.CDLL(None, use_errno=True)


def ioctl(fd: int, request: int, argument: int | bytes, operation: str) -> int:
    """ioctl(2). Its OSError names the operation. Returns an fd for some requests, else 0."""
    try:
        result = fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, operation) from None
    return result if isinstance(result, int) else 0  # a bytes argument comes back changed


def setns(fd: int, nstype: int) -> None:
    """setns(2), which Python has since 3.12."""
    _check(_libc.setns(fd, nstype), "setns")


def unshare(flags: int) -> None:
    """unshare(2), which Python has since 3.12."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Arguments that the flags make it ignore may be empty."""
    texts = [os.fsencode(text) for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(options))
    _check(result, f"mount {target}")


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2); the C library has no function for it."""
    number = SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, os.fsencode(new), os.fsencode(old)), "pivot_root")


def prctl(option: int, argument: int | bytes, second: int = 0) -> None:
    """prctl(2) with one or two arguments."""
    pointer = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    _check(_libc.prctl(option, pointer, ctypes.c_ulong(second), 0, 0), "prctl")


def add_inheritable(capability: int) -> None:
    """capget(2) and capset(2): add a permitted capability to our inheritable set."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable: the low halves, then the high ones.
    sets = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, sets), "capget")
    halves = list(struct.unpack("=6I", sets.raw))
    halves[2 + 3 * (capability // 32)] |= 1 << capability % 32
    _check(_libc.capset(header, struct.pack("=6I", *halves)), "capset")


def timerfd_create(clock: int, flags: int) -> int:
    """timerfd_create(2), which Python has since 3.13."""
    return _check(_libc.timerfd_create(clock, flags), "timerfd_create")


def timerfd_settime(fd: int, flags: int, seconds: int) -> None:
    """timerfd_settime(2) for a timer that expires once."""
    end = _Itimerspec(it_value=_Timespec(tv_sec=seconds))
    _check(_libc.timerfd_settime(fd, flags, ctypes.byref(end), None), "timerfd_settime")


def adjtimex() -> bytes:
    """adjtimex(2) that changes nothing. Returns the struct timex of linux/timex.h."""
    timex = ctypes.create_string_buffer(208)  # its size on 64-bit machines
    _check(_libc.adjtimex(timex), "adjtimex")
    return timex.raw


def landlock_version() -> int:
    """Return the kernel's Landlock ABI version: landlock_create_ruleset(2) with a flag."""
    flag = ctypes.c_uint32(LANDLOCK_CREATE_RULESET_VERSION)
    result = _libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), flag)
    return _check(result, "landlock_create_ruleset")


def syscall(operation: str, number: int, *arguments: object) -> int:
    """syscall(2), for what the C library has no function for. Its OSError names the operation."""
    return _check(_libc.syscall(number, *arguments), operation)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


def _check(result: int, operation: str) -> int:
    """Return the result of a C library function; raise OSError by errno if it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), operation)
    return result
