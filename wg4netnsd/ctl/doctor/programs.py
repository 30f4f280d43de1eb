"""The checks of programs: the engine, and those of other projects."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Final

from wg4netnsd.ctl.doctor.finding import REINSTALL, Finding, note, ok, problem
from wg4netnsd.ctl.doctor.system import read, user

_TIME: Final = 10.0
"""Seconds for a program to end. It takes a thousandth of that, but the machine may be busy."""

_MACHINES: Final = {62: "x86_64", 183: "aarch64"}  # e_machine of elf(5): as `uname -m` prints it
_PT_INTERP: Final = 3

_FIRST_WITH_FDS: Final = 257
"""The first systemd whose busctl passes file descriptors."""


# ---------------------------------------------------------------- the engine


def engine() -> Finding:
    from wg4netnsd.engine.engine import BINARY

    try:
        machine, link = _read_elf(BINARY)
        if machine != platform.machine():
            why = f"is for {machine}, and this machine is {platform.machine()}"
        elif not (version := _first_line(BINARY, "--version")).startswith("wireguard-go v"):
            why = f"is another program: it says it is '{version[:40]}'"
        else:
            said, lacks = _start(BINARY)
            why = f"does not start: it says '{said[:120]}'" if said else ""
            if "INTERFACE-NAME" in said:
                why = f"is not the patched one: it says '{said[:60]}'"
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = f"does not run: {getattr(error, 'strerror', None) or error}"
    if why:
        return problem(f"{BINARY} {why}").advise(REINSTALL)
    found = f"{version}, {link}, starts and ends"
    if not lacks:
        return ok(found)
    return note(f"{found}; its sandbox lacks {', '.join(lacks)}").advise("""Engines run without it.
        If the kernel has it, a container's system call filter may forbid it: podman's and docker's
        '--security-opt seccomp=unconfined' lifts that.""")


def _read_elf(path: Path) -> tuple[str, str]:
    """The machine that a program is for, and its linking: a static one has no interpreter."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:5] != b"\x7fELF\x02" or len(head) < 64:
        raise ValueError("not a program for a 64-bit machine")
    (number,) = struct.unpack_from("<H", head, 18)
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    kinds = [struct.unpack_from("<I", head, offset + i * size)[0] for i in range(count)]
    link = "dynamic" if _PT_INTERP in kinds else "static"
    return _MACHINES.get(number, f"machine {number}"), link


def _start(binary: Path) -> tuple[str, list[str]]:
    """Start the engine as the daemon does, but with the other end of its handover socket closed:
    the patched one ends silently, upstream's prints its usage. Returns the last line of output, and
    the parts of its sandbox that it lacks."""
    from wg4netnsd.engine import engine, events

    ours, its = socket.socketpair()
    ours.close()
    reader, writer = os.pipe()
    with open(reader) as lines:
        with its, open(writer, "w"):
            done = subprocess.run(
                [binary],
                env=engine.environment(its.fileno(), writer),
                pass_fds=(its.fileno(), writer),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_TIME,
            )
        told = [events.parse(line) for line in lines]
    lacks = [str(event) for event in told if isinstance(event, events.Lack)]
    words = done.stdout.decode(errors="replace").strip().rpartition("\n")[2].strip()
    return words or (f"status {done.returncode}" if done.returncode else ""), lacks


def _first_line(*command: str | Path) -> str:
    """The first line of a command's output. Raises OSError and SubprocessError."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIME)
    return done.stdout.partition("\n")[0].strip()


# ---------------------------------------------------------------- other programs


def busctl() -> Finding:
    try:
        said = _first_line("busctl", "--version")  # such as "systemd 252 (252.39-1~deb12u1)"
        version = int(re.split("[.~]", said.split()[1])[0])
    except FileNotFoundError:
        return note("is missing: scripts call the daemon with it").advise("""It is part of systemd.
            On Debian and Ubuntu:
            $ sudo apt install systemd""")
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        return note(f"does not tell its version: {error}").advise("""See what it says:
            $ busctl --version""")
    if version >= _FIRST_WITH_FDS:
        return ok(f"{version}, passes file descriptors")
    return note(
        f"{version} passes no file descriptors: systemd {_FIRST_WITH_FDS} and newer do"
    ).advise("""Scripts can pass paths to CreateTunnelFromPaths, or file descriptors with gdbus;
        wg4netnsctl needs neither.""")


def wg() -> Finding:
    if program := shutil.which("wg"):
        return ok(program)
    return note("is missing: 'wg4netnsctl wg' runs it").advise("""It is in the package
        wireguard-tools. On Debian and Ubuntu:
        $ sudo apt install --no-install-recommends wireguard-tools""")


def subordinate_ids() -> Finding:
    """Check for other programs: our namespaces map one uid, which needs no privileges."""
    programs = [name for name in ("newuidmap", "newgidmap") if not _is_privileged(name)]
    if programs:
        return note(
            f"{' and '.join(programs)} can't be run with privileges: rootless podman needs that, "
            "wg4netnsd does not"
        ).advise("""Install them. The package is shadow-utils on Fedora, shadow on Arch; on Debian
            and Ubuntu:
            $ sudo apt install uidmap""")
    kinds = [kind for kind in ("uid", "gid") if not _has_range(kind)]
    if kinds:
        files = " and ".join(f"/etc/sub{kind}" for kind in kinds)
        found = f"no range in {files}: rootless podman needs one, wg4netnsd does not"
        add = [f"$ sudo usermod --add-sub{kind}s {_free_range(kind)} {user()}" for kind in kinds]
        return note(found).advise("If you use it, take a range that is free:", *add)
    return ok("there are some, as rootless podman needs")


def _is_privileged(name: str) -> bool:
    """Has the program a set-user-id bit or a file capability?"""
    program = shutil.which(name)
    if program and os.stat(program).st_mode & 0o4000:
        return True
    try:
        return bool(program and os.getxattr(program, "security.capability"))
    except OSError:
        return False


def _has_range(kind: str) -> bool:
    """Ask getsubids(1) where it exists: nsswitch.conf may name other sources than the file."""
    command = ["getsubids", *(["-g"] if kind == "gid" else []), user()]
    try:
        return bool(subprocess.run(command, capture_output=True, timeout=_TIME).stdout)
    except (OSError, subprocess.SubprocessError):
        return any(owner in (user(), str(os.getuid())) for owner, _, _ in _ranges(kind))


def _free_range(kind: str) -> str:
    """65536 ids above all others, as useradd(8) chooses them."""
    first = max([100000, *(int(start) + int(count) for _, start, count in _ranges(kind))])
    return f"{first}-{first + 65535}"


def _ranges(kind: str) -> list[list[str]]:
    """The lines of /etc/subuid or /etc/subgid: owner, first id, count."""
    lines = [line.split(":") for line in read(f"/etc/sub{kind}").splitlines()]
    return [line for line in lines if len(line) == 3]
