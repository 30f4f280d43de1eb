"""`wg4netnsctl doctor`: the engine, and other people's programs."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Final

from wg4netnsd.ctl.doctor.finding import INSTALL_ANEW, Finding, note, ok, problem, run
from wg4netnsd.ctl.doctor.procfs import user

ENGINE: Final = Path(__file__).parents[2] / "bin/wireguard-go"

_TIME: Final = 10.0
"""Seconds that a program gets to tell its version. It needs a thousandth of that, but a machine may
be busy."""

_MACHINES: Final = {62: "x86_64", 183: "aarch64"}  # e_machine of elf(5), as uname -m has them
_PT_INTERP: Final = 3

_FDS_OF_BUSCTL: Final = 257
"""The first systemd whose busctl passes file descriptors."""


# ---------------------------------------------------------------- the engine


def engine() -> Finding:
    try:
        machine, is_static = _elf(ENGINE)
        if machine != platform.machine():
            return _broken(f"is for {machine}, and this machine is {platform.machine()}")
        version = _first_line(str(ENGINE), "--version")
        if not version.startswith("wireguard-go v"):
            return _broken(f"is another program: it says it is '{version[:40]}'")
        words, lacks = _starts_and_ends()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "strerror", None) or error
        return _broken(f"does not run: {reason}")
    if "INTERFACE-NAME" in words:
        return _broken(f"is not the patched one: it says '{words[:60]}'")
    if words:
        return _broken(f"does not start: it says '{words[:120]}'")
    link = "static" if is_static else "dynamic"
    found = f"{version}, {link}, starts and ends"
    if not lacks:
        return ok(found)
    return note(
        f"{found}; its sandbox lacks {', '.join(lacks)}",
        "Engines run without it. If the kernel has it, a container's system call filter may forbid "
        "it: podman's and docker's '--security-opt seccomp=unconfined' lifts that.",
    )


def _broken(why: str) -> Finding:
    return problem(f"{ENGINE} {why}", *INSTALL_ANEW)


def _elf(path: Path) -> tuple[str, bool]:
    """Which machine it is for, and whether it does without an interpreter: see elf(5)."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:5] != b"\x7fELF\x02" or len(head) < 64:
        raise ValueError("not a program for a 64-bit machine")
    (number,) = struct.unpack_from("<H", head, 18)
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    kinds = [struct.unpack_from("<I", head, offset + i * size)[0] for i in range(count)]
    return _MACHINES.get(number, f"machine {number}"), _PT_INTERP not in kinds


def _starts_and_ends() -> tuple[str, list[str]]:
    """What it says when it is started as the daemon does, and finds nobody to take orders from; and
    the parts of its confinement that it does without.

    The patched one says nothing, and ends. Upstream's tells its usage.
    """
    ours, its = socket.socketpair()
    reader, writer = os.pipe()
    ours.close()
    try:
        done = subprocess.run(
            [ENGINE],
            env={"WG_HANDOVER_FD": str(its.fileno()), "WG_EVENT_FD": str(writer)},
            pass_fds=(its.fileno(), writer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIME,
        )
    finally:
        its.close()
        os.close(writer)
        with open(reader) as events:
            told = events.read().splitlines()
    lacks = [line.removeprefix("lacks ") for line in told if line.startswith("lacks ")]
    words = done.stdout.decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(words) if line.strip()), "")
    return said or (f"status {done.returncode}" if done.returncode else ""), lacks


def _first_line(*command: str) -> str:
    """Raises OSError, SubprocessError."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIME)
    return done.stdout.partition("\n")[0].strip()


# ---------------------------------------------------------------- others'


def busctl() -> Finding:
    try:
        said = _first_line("busctl", "--version")  # such as "systemd 252 (252.39-1~deb12u1)"
        version = int(said.split()[1].partition("~")[0].partition(".")[0])
    except FileNotFoundError:
        return note(
            "is missing: 'wg4netnsctl setup' and scripts speak to the bus by it",
            "It is a part of systemd. On Debian and Ubuntu:",
            run("sudo apt install systemd"),
        )
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        return note(f"does not tell its version: {error}", "See what it says:",
                    run("busctl --version"))  # fmt: skip
    if version >= _FDS_OF_BUSCTL:
        return ok(f"{version}, passes file descriptors")
    return note(
        f"{version} passes no file descriptors: systemd {_FDS_OF_BUSCTL} and newer do",
        "Scripts hand over paths, by CreateTunnelFromPaths, or descriptors by gdbus; "
        "wg4netnsctl needs neither.",
    )


def wg() -> Finding:
    if program := shutil.which("wg"):
        return ok(program)
    return note(
        "is missing: 'wg4netnsctl wg' runs it",
        "It is in the package wireguard-tools. On Debian and Ubuntu:",
        run("sudo apt install --no-install-recommends wireguard-tools"),
    )


# ---------------------------------------------------------------- subordinate ids


def subordinate_ids() -> Finding:
    """For others that make namespaces: we map one uid, for which the kernel asks nobody."""
    lacking = [name for name in ("newuidmap", "newgidmap") if not _is_privileged(name)]
    if lacking:
        return note(
            f"{' and '.join(lacking)} can't be run with privilege: rootless podman needs that, "
            "wg4netnsd does not",
            "Install them; the package is shadow-utils with Fedora, shadow with Arch:",
            run("sudo apt install uidmap"),
        )
    without = [kind for kind in ("uid", "gid") if not _ranges(kind)]
    if without:
        return note(
            f"no range in {' and '.join(f'/etc/sub{kind}' for kind in without)}: rootless podman "
            "needs one, wg4netnsd does not",
            "If you use such, take a range that is free:",
            *(run(f"sudo usermod --add-sub{k}s {_free_range(k)} {user()}") for k in without),
        )
    return ok("there are some, for rootless podman and the like")


def _is_privileged(name: str) -> bool:
    """By its set-user-id bit, or by a file capability."""
    program = shutil.which(name)
    if not program:
        return False
    if os.stat(program).st_mode & 0o4000:
        return True
    try:
        return bool(os.getxattr(program, "security.capability"))
    except OSError:
        return False


def _ranges(kind: str) -> list[str]:
    """Ours: by getsubids(1) where it is, as nsswitch.conf may name another place than the file."""
    group = ["-g"] if kind == "gid" else []
    try:
        done = subprocess.run(
            ["getsubids", *group, user()], capture_output=True, text=True, timeout=_TIME
        )
    except (OSError, subprocess.SubprocessError):
        owners = (user(), str(os.getuid()))
        return [line for line in _subordinate(kind) if line.split(":")[0] in owners]
    return done.stdout.splitlines() if not done.returncode else []


def _free_range(kind: str) -> str:
    """As useradd(8) would: 65536 ids, above all others."""
    taken = [line.split(":") for line in _subordinate(kind)]
    first = max([100000, *(int(start) + int(count) for _, start, count in taken)])
    return f"{first}-{first + 65535}"


def _subordinate(kind: str) -> list[str]:
    try:
        lines = Path(f"/etc/sub{kind}").read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if line.count(":") == 2]
