"""The root-owned files that ssh includes in its configuration.

ssh accepts an included file only if root or the user owns it. In a user namespace that does not map
root, root's files belong to nobody, and ssh exits with "Bad owner or permissions"
(read_config_file_depth() in its readconf.c). So `run` and `exec` give it copies that the user owns.
We look for the files before entering the namespace: inside, root's files can't be told from those
of other users, and ssh is right to refuse the latter.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

_SYSTEM: Final = ("/etc/ssh/ssh_config", "/usr/etc/ssh/ssh_config")  # the latter: SUSE
_USER: Final = "~/.ssh/config"
_MOST_BYTES: Final = 1 << 16  # of one file
_DEPTH: Final = 16  # READCONF_MAX_DEPTH in ssh


class RootFile(NamedTuple):
    path: str
    """Without symbolic links."""
    mode: int
    content: bytes


def root_files() -> list[RootFile]:
    """Find the files. Call this outside the user namespace."""
    found: dict[str, RootFile] = {}
    if os.getuid():
        for path in _SYSTEM:
            _follow_includes(_read(path), "/etc/ssh", found)
        _follow(os.path.expanduser(_USER), os.path.expanduser("~/.ssh"), found)
    return list(found.values())


def _follow(path: str, base: str, found: dict[str, RootFile], depth: int = 0) -> None:
    path = os.path.realpath(path)
    if path in found or depth > _DEPTH:
        return
    with contextlib.suppress(OSError):  # ssh will report it
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            return
        content = _read(path)
        if not status.st_uid:
            found[path] = RootFile(path, stat.S_IMODE(status.st_mode), content)
        _follow_includes(content, base, found, depth)


def _follow_includes(content: bytes, base: str, found: dict[str, RootFile], depth: int = 0) -> None:
    for pattern in _included(content):
        import glob  # here, as start-up time counts and most users include nothing

        for path in sorted(glob.glob(os.path.join(base, os.path.expanduser(pattern)))):
            _follow(path, base, found, depth + 1)


def _included(content: bytes) -> Iterator[str]:
    """The patterns of each Include of ssh_config(5), whatever Host or Match it is for."""
    for line in os.fsdecode(content).splitlines():
        keyword, *patterns = line.replace("=", " ", 1).replace('"', " ").split() or [""]
        if keyword.lower() == "include":
            yield from patterns


def _read(path: str) -> bytes:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(_MOST_BYTES)
    return b""
