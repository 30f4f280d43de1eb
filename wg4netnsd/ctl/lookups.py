"""Look-ups of names that go where a resolv.conf says, and nowhere else.

A network namespace isolates no look-up: the C library asks nscd and, where nsswitch.conf says so,
systemd-resolved or avahi, by sockets in the file system, and these ask in the host's network. So a
mount namespace of our own is given

    /etc                   the host's, in view, but for two files
    ├── nsswitch.conf      the host's, with `hosts: files myhostname dns` at most
    └── resolv.conf        the daemon's, with the name servers of the tunnel
    /run                   the host's, without nscd; left as it is where there is no nscd
    ├── avahi-daemon       nothing in it
    └── systemd/resolve    nothing in it

The root-owned files that ssh includes (sshconfig.py) are covered with copies that we own.

It is not enough to mount something over each file. When the host replaces it by rename(2), as
NetworkManager and resolvconf do with resolv.conf, or removes the directory, as systemd does when
nscd stops, the kernel detaches whatever other mount namespaces have mounted there
(__detach_mounts() in fs/namespace.c), and the host's would be seen. So the directory around it is
covered, which stays.

The limits:
- nscd that is started later, on a host that had no /run/nscd, is asked.
- The system bus is in reach: who asks systemd-resolved or avahi over it, as resolvectl does, is
  answered by the host. This is no sandbox.
- In /etc a file that the host replaces may be seen as it was; changes in place and new files show.
  Where the kernel grants no overlay, and in /run where it is covered, new files do not show either.
- ssh's copies do not follow changes. One outside /etc is gone once the host replaces the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Final

from wg4netnsd.ctl import mounts
from wg4netnsd.ctl.sshconfig import RootFile
from wg4netnsd.kernel.syscalls import MS_BIND, MS_RDONLY, mount

_EMPTIED: Final = ("avahi-daemon", "systemd/resolve")
"""Of /run. With our nsswitch.conf nobody asks there; programs that bring their own one may."""


def confine(resolv_conf: str, copied: Collection[RootFile] = ()) -> None:
    """Have look-ups go by the file `resolv_conf`, of this process and of all that come from it, and
    show copies that we own in place of the root-owned files in `copied`.

    After mounts.own(), with CAP_SYS_ADMIN in the user namespace of the mount namespace. What is
    written into resolv_conf later is seen; another file of its name is not. Raises OSError, which
    names what failed.
    """
    _cover_etc(resolv_conf, copied)
    for run in {os.path.realpath("/run"), os.path.realpath("/var/run")}:
        if os.path.lexists(f"{run}/nscd"):
            _leave_out(run, "nscd")
        for path in (f"{run}/{name}" for name in _EMPTIED):
            if os.path.isdir(path):
                mounts.cover_with_tmpfs(path)
                mounts.forbid_writing(path)


def without_others(nsswitch: str) -> str:
    """The text of nsswitch.conf(5) with nobody but files and DNS to ask for hosts.

    myhostname stays if it was there: it knows the machine's own names and asks nobody.
    """
    lines = []
    found = False
    for line in nsswitch.splitlines():
        entry = line.partition("#")[0]
        # The C library takes `hosts files` and `hosts : files` too (nss_database.c, process_line).
        if entry.replace(":", " ", 1).split()[:1] == ["hosts"]:
            myhostname = " myhostname" if "myhostname" in entry else ""
            line = f"hosts: files{myhostname} dns"
            found = True
        lines.append(line)
    if not found:
        lines.append("hosts: files dns")
    return "".join(f"{line}\n" for line in lines)


def _cover_etc(resolv_conf: str, copied: Collection[RootFile]) -> None:
    # Where /usr has the defaults, as with SUSE, that one is read unless /etc has another.
    nsswitch = without_others(_read("/etc/nsswitch.conf") or _read("/usr/etc/nsswitch.conf"))
    with (
        mounts.opened(resolv_conf, os.O_PATH) as source,
        mounts.opened("/etc", os.O_DIRECTORY) as etc,
        _copies(copied) as copies,
    ):
        mounts.cover_with_tmpfs("/etc")
        _write("/etc/nsswitch.conf", nsswitch.encode(errors="surrogateescape"))
        _write("/etc/resolv.conf", b"")
        try:
            # Of two lower layers and no upper one: the first has our files, the second the host's.
            layers = f"lowerdir=/etc:/proc/self/fd/{etc}"
            mount("overlay", "/etc", "overlay", MS_RDONLY | mounts.FLAGS, layers)
        except OSError:
            # In a container, most of all: an overlay shows nothing of what is mounted in its
            # layers, and the kernel refuses to uncover with it what lies beneath
            # (has_locked_children). Before Linux 5.11 it is root's alone.
            mounts.bind_all(etc, "/etc", without=("nsswitch.conf", "resolv.conf"))
            mounts.forbid_writing("/etc")
        mount(f"/proc/self/fd/{source}", "/etc/resolv.conf", "", MS_BIND)
        for path, copy in copies.items():
            with contextlib.suppress(OSError):  # it is gone: what reads it does without, or says so
                mount(f"/proc/self/fd/{copy}", path, "", MS_BIND)
                mounts.forbid_writing(path)


@contextlib.contextmanager
def _copies(files: Collection[RootFile]) -> Iterator[dict[str, int]]:
    """Make the copies, in a tmpfs over /etc that has yet to be covered. An fd of each, by path."""
    with contextlib.ExitStack() as stack:
        copies: dict[str, int] = {}
        if files:
            mounts.cover_with_tmpfs("/etc")
        for number, file in enumerate(files):
            name = f"/etc/{number}"
            _write(name, file.content, file.mode)
            copies[file.path] = stack.enter_context(mounts.opened(name, os.O_PATH))
        yield copies


def _leave_out(directory: str, name: str) -> None:
    with mounts.opened(directory, os.O_DIRECTORY) as covered:
        mounts.cover_with_tmpfs(directory)
        mounts.bind_all(covered, directory, without=(name,))
        mounts.forbid_writing(directory)


def _read(path: str) -> str:
    """Nothing where it is missing or leads nowhere."""
    with contextlib.suppress(FileNotFoundError), open(path, errors="surrogateescape") as file:
        return file.read()
    return ""


def _write(path: str, content: bytes, mode: int = 0o644) -> None:
    """With this mode, whatever our umask is."""
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
