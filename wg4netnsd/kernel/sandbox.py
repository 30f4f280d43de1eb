"""What a process gives up for good: Landlock's files and seccomp's system calls.

landlock(7), seccomp(2). Both last for the process and what it starts, and need PR_SET_NO_NEW_PRIVS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Final

from wg4netnsd.kernel.syscalls import landlock_version, syscall

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # asm-generic/unistd.h
_RULE_PATH_BENEATH: Final = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ACCESS_OF_VERSION: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights to files that a version knows: execute to make_sym, refer, truncate, ioctl_dev."""


def restrict_files(readable: Iterable[str]) -> None:
    """Deny all files but those in `readable`, which can be read. Raises OSError.

    Sockets' paths are not among them: connect() to a Unix socket stays possible.
    """
    version = landlock_version()
    handled = _ACCESS_OF_VERSION[max(each for each in _ACCESS_OF_VERSION if each <= version)]
    attribute = struct.pack("=Q", handled)
    ruleset = syscall(
        "landlock_create_ruleset", _CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), 0
    )
    try:
        for path in readable:
            _allow(ruleset, path)
        syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        rule = struct.pack("=Qi", rights, fd)  # struct landlock_path_beneath_attr, packed
        syscall("landlock_add_rule", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- seccomp

# linux/prctl.h, linux/seccomp.h, linux/audit.h, linux/bpf_common.h
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000

# asm/unistd_64.h, asm-generic/unistd.h
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kill": (62, 129),
    "tkill": (200, 130),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
}


def deny_system_calls(names: Iterable[str] = _NUMBERS) -> None:
    """Have these fail with EPERM from now on, and all of another architecture. Raises OSError."""
    machine = os.uname().machine
    column = list(_ARCHITECTURES).index(machine)  # ValueError: the engine has none for it either
    numbers = [number for name in names if (number := _NUMBERS[name][column]) is not None]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, len(numbers) + 3, _ARCHITECTURES[machine]),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, len(numbers) + 1, 0, _X32_BIT),
        *((_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),  # where all jumps above lead
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    # struct sock_fprog
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(packed))
    buffer = ctypes.create_string_buffer(head)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), buffer, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "seccomp")
