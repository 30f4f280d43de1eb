"""Host name look-ups that use only the servers of a resolv.conf.

A network namespace does not isolate look-ups: the C library asks nscd and, if nsswitch.conf says
so, systemd-resolved or avahi, over sockets in the file system; these ask in the host's network. So
our mount namespace gets

    /etc                   the host's, except for two files
    ├── nsswitch.conf      the host's, with `hosts: files myhostname dns` at most
    └── resolv.conf        the daemon's, with the name servers of the tunnel
    /run                   the host's without nscd; unchanged if the host has no nscd
    ├── avahi-daemon       empty
    └── systemd/resolve    empty

Copies that we own cover the root-owned files that ssh includes (sshconfig.py).

Mounting something over each file is not enough. When the host replaces the file by rename(2), as
NetworkManager and resolvconf do with resolv.conf, or removes the directory, as systemd does when
nscd stops, the kernel detaches what other mount namespaces have mounted there (__detach_mounts() in
fs/namespace.c), and the host's file would show. So we cover the directory, which stays.

Limits:
- nscd is asked if it is started later, on a host that had no /run/nscd.
- The system bus stays reachable: programs that ask systemd-resolved or avahi over it, such as
  resolvectl, get the host's answers. This is not a sandbox.
- A file in /etc that the host replaces may show its old content; changes in place and new files
  show. Where the kernel allows no overlay, and in a covered /run, new files do not show either.
- ssh's copies do not follow changes. One outside /etc vanishes when the host replaces the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Final

from wg4netnsd.ctl import mounts
from wg4netnsd.ctl.sshconfig import RootFile
from wg4netnsd.kernel.syscalls import MS_RDONLY, mount

_EMPTIED: Final = ("avahi-daemon", "systemd/resolve")
"""Directories in /run. With our nsswitch.conf the C library does not ask there, but a program with
its own nsswitch.conf may."""


def confine(resolv_conf: str | bytes, copied: Collection[RootFile] = ()) -> None:
    """Make this process and its descendants use the file `resolv_conf` for look-ups, and see copies
    that we own instead of the root-owned files in `copied`.

    Call mounts.isolate() before; needs CAP_SYS_ADMIN in the user namespace that owns the mount
    namespace. Later writes to resolv_conf show, a file that replaces it does not; bytes are a text
    that stays. Raises OSError that names the operation.
    """
    _cover_etc(resolv_conf, copied)
    for run in {os.path.realpath("/run"), os.path.realpath("/var/run")}:
        if os.path.lexists(f"{run}/nscd"):
            mounts.leave_out(run, "nscd")
        for path in (f"{run}/{name}" for name in _EMPTIED):
            if os.path.isdir(path):
                mounts.cover_with_tmpfs(path)
                mounts.forbid_writing(path)


def restrict_hosts(nsswitch: str) -> str:
    """The text of nsswitch.conf(5) with no sources for hosts except files and DNS.

    myhostname stays if it was there: it knows the machine's own names and asks no server.
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


def _cover_etc(resolv_conf: str | bytes, copied: Collection[RootFile]) -> None:
    # SUSE has the defaults in /usr, used unless /etc has the file.
    nsswitch = restrict_hosts(_read("/etc/nsswitch.conf") or _read("/usr/etc/nsswitch.conf"))
    path, text = ("", resolv_conf) if isinstance(resolv_conf, bytes) else (resolv_conf, b"")
    with (
        mounts.open_fd(path or "/", os.O_PATH) as source,
        mounts.open_fd("/etc", os.O_DIRECTORY) as etc,
        _copies(copied) as copies,
    ):
        mounts.cover_with_tmpfs("/etc")
        _write("/etc/nsswitch.conf", nsswitch.encode(errors="surrogateescape"))
        _write("/etc/resolv.conf", text)
        try:
            # Two lower layers and no upper one: the first has our files, the second the host's.
            layers = f"lowerdir=/etc:/proc/self/fd/{etc}"
            mount("overlay", "/etc", "overlay", MS_RDONLY | mounts.FLAGS, layers)
        except OSError:
            # Mostly in a container: an overlay does not show the mounts in its layers, and the
            # kernel refuses one that would uncover what lies beneath them (has_locked_children).
            # Before Linux 5.11 only root may mount an overlay.
            mounts.bind_all(etc, "/etc", without=("nsswitch.conf", "resolv.conf"))
            mounts.forbid_writing("/etc")
        if path:
            mounts.bind_file(source, "/etc/resolv.conf")
        for path, copy in copies.items():
            with contextlib.suppress(OSError):  # it is gone; ssh copes, or says so
                mounts.bind_file(copy, path)


@contextlib.contextmanager
def _copies(files: Collection[RootFile]) -> Iterator[dict[str, int]]:
    """Make the copies in a tmpfs over /etc, to be covered later. Yields each one's fd by path."""
    with contextlib.ExitStack() as stack:
        copies: dict[str, int] = {}
        if files:
            mounts.cover_with_tmpfs("/etc")
        for number, file in enumerate(files):
            name = f"/etc/{number}"
            _write(name, file.content, file.mode)
            copies[file.path] = stack.enter_context(mounts.open_fd(name, os.O_PATH))
        yield copies


def _read(path: str) -> str:
    """A file's text; empty if it is missing or a dangling link."""
    with contextlib.suppress(FileNotFoundError), open(path, errors="surrogateescape") as file:
        return file.read()
    return ""


def _write(path: str, content: bytes, mode: int = 0o644) -> None:
    """Create a file with this mode, whatever the umask."""
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
