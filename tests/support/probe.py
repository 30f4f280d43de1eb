"""Tries what a unit may forbid, each in a process of its own: probe.py OUTPUT NAME…

OUTPUT gets a JSON object: by name what came of it, "ok" or the error's or the signal's name.
Nothing here needs privileges: as root of a user namespace of its own it may do the rest.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NOWHERE = ctypes.c_void_p(1)
"""No address: the kernel answers EFAULT where the call itself is allowed."""
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
X32 = 0x40000000  # asm/unistd.h: __X32_SYSCALL_BIT
NUMBERS = {
    "x86_64": {"io_setup": 206, "keyctl": 250, "getpid of x32": X32 + 39},
    "aarch64": {"io_setup": 0, "keyctl": 219},
}[platform.machine()]


def call(name: str, *arguments: object) -> int:
    result = int(getattr(LIBC, name)(*arguments))
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def syscall(name: str, *arguments: object) -> int:
    return call("syscall", ctypes.c_long(NUMBERS[name]), *arguments)


def namespace(kind: int) -> Callable[[], object]:
    return lambda: call("unshare", NEWUSER | kind)


def sockets(*families: int) -> None:
    for family in families:
        socket.socket(family, socket.SOCK_DGRAM).close()


def packet_socket() -> None:
    call("unshare", NEWUSER | NEWNET)
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def setns_of_any_kind() -> None:
    call("unshare", NEWUSER | NEWNET)
    call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)


def writable_and_executable() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def made_executable() -> None:
    memory = mmap.mmap(-1, 4096)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    call("mprotect", address, 4096, mmap.PROT_READ | mmap.PROT_EXEC)


def denied_by_kernel() -> None:
    PR_GET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 66, 1
    if not call("prctl", PR_GET_MDWE, 0, 0, 0, 0) & PR_MDWE_REFUSE_EXEC_GAIN:
        raise OSError(errno.EACCES, "it is not")


def set_user_id() -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.fchmod(file.fileno(), 0o4700)


def schedule(policy: int) -> Callable[[], object]:
    # Of priority 0, which no real-time policy takes: EINVAL comes before the kernel's own EPERM.
    return lambda: os.sched_setscheduler(0, policy, os.sched_param(0))


def session_keyring() -> int:
    return syscall("keyctl", 0, ctypes.c_long(-3), 0)  # KEYCTL_GET_KEYRING_ID


def inherited_session_keyring() -> None:
    """Whether it is $SESSION_KEYRING, that of who started the user manager."""
    if str(session_keyring()) != os.environ["SESSION_KEYRING"]:
        raise OSError(errno.ENOKEY, "another")


PROBES: dict[str, Callable[[], object]] = {
    "user namespace": namespace(0),
    "network namespace": namespace(NEWNET),
    "mount namespace": namespace(NEWNS),
    "cgroup namespace": namespace(NEWCGROUP),
    "UTS namespace": namespace(NEWUTS),
    "IPC namespace": namespace(NEWIPC),
    "PID namespace": namespace(NEWPID),
    "setns of any kind": setns_of_any_kind,
    "our sockets": lambda: sockets(
        socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK
    ),
    "packet socket": packet_socket,
    "writable and executable": writable_and_executable,
    "made executable": made_executable,
    "PR_GET_MDWE": denied_by_kernel,
    "set-user-id": set_user_id,
    "personality": lambda: call("personality", 8),  # PER_LINUX32
    "real time": schedule(os.SCHED_FIFO),
    "batch": schedule(os.SCHED_BATCH),
    "another ABI": lambda: syscall("getpid of x32"),
    "mount": lambda: call("mount", NOWHERE, NOWHERE, NOWHERE, 0, None),
    "chroot": lambda: call("chroot", NOWHERE),
    "setuid": lambda: os.setuid(os.getuid()),
    "asynchronous I/O": lambda: syscall("io_setup", 0, NOWHERE),
    "keyring": session_keyring,
    "a process's memory": lambda: call("process_vm_readv", os.getpid(), None, 0, None, 0, 0),
    "ptrace": lambda: call("ptrace", 0, 0, None, None),  # PTRACE_TRACEME
    "inherited session keyring": inherited_session_keyring,
}


def outcome(probe: Callable[[], object]) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            probe()
            told = "ok"
        except OSError as error:
            told = errno.errorcode[error.errno or 0]
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with open(reader, "rb") as file:
        told = file.read().decode()
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else told


def main() -> None:
    output, *chosen = sys.argv[1:]
    outcomes = {name: outcome(PROBES[name]) for name in chosen}
    Path(output).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
