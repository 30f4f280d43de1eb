"""Creating a tunnel from a configuration and a namespace, for `run`, `up` and `attach`."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from argparse import Namespace as Arguments
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from wg4netnsd import names
from wg4netnsd.ctl import progress, xdg
from wg4netnsd.ctl.client import Client, Reply
from wg4netnsd.ctl.failure import INVALID_CONFIG, Failure, complain, of_kernel, without_name

SUFFIX = ".conf"

_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD
"""Its inode: PROC_USER_INIT_INO in linux/proc_ns.h."""

START_TIME = 20.0
"""Seconds that a daemon may take to start, on top of the time limit of the call."""


class Conf(NamedTuple):
    """An open configuration, and the name that its file suggests for a tunnel."""

    fd: int
    path: str
    name: str


def conf_path(conf: str) -> str:
    """A path stays as it is; a bare NAME means ~/.config/wg4netnsd/NAME.conf."""
    if conf.endswith(SUFFIX) or not names.TUNNEL_NAME.fullmatch(conf):
        return conf
    return os.path.join(xdg.directory("XDG_CONFIG_HOME", "~/.config"), "wg4netnsd", conf + SUFFIX)


@contextlib.contextmanager
def open_conf(conf: str) -> Iterator[Conf]:
    """Open the configuration, for the daemon to check and read; `/dev/stdin` and pipes work too.

    InvalidConfig that is raised in the block gets the path.
    """
    path = conf_path(conf)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "" if path == conf else f"'{conf}' is a name; paths contain / or end in {SUFFIX}"
        raise of_kernel(error, hint, INVALID_CONFIG) from None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o044:
        complain(f"warning: {path}: others may read it: use 'chmod 600'")
    try:
        yield Conf(fd, path, os.path.basename(path).removesuffix(SUFFIX))
    except Failure as failure:
        if failure.status != INVALID_CONFIG:
            raise
        # The text names the option of the bus, for users of other clients.
        hint = "on this command line, that is '--ignore KEY'" if "ignore=" in str(failure) else ""
        raise Failure(f"{path}: {failure}", hint, failure.status) from None
    finally:
        os.close(fd)


def warn_of_error(tunnel: dict[str, Any]) -> None:
    """Warn of a new tunnel's error: it is up nevertheless."""
    if any(tunnel["LastError"]):
        complain(f"warning: {tunnel['Name']}: {without_name(*tunnel['LastError'])}")


def add_forwards(client: Client, path: str, arguments: Arguments) -> None:
    """Add the forwards that were asked for with a new tunnel; it is closed if one can't be."""
    from wg4netnsd.ctl import forwards

    try:
        forwards.add_all(client, path, arguments)
    except Failure:
        client.call(path, names.TUNNEL, "Close", start=False)
        raise


def suggested_name(name: str, suffix: str = "") -> str:
    """The valid tunnel name nearest to `name`; empty if there is none: the daemon chooses one."""
    possible = re.sub(r"[^A-Za-z0-9_.@-]", "_", name).lstrip("_.@-")
    return possible and possible[: names.TUNNEL_NAME_LENGTH - len(suffix)] + suffix


def options(arguments: Arguments, name: str, **more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    """The options for CreateTunnel from the command line, and `more`."""
    asked = dict(more)
    if name := arguments.name or name:
        asked["name"] = ("s", name)
    if arguments.interface is not None:
        asked["interface"] = ("s", arguments.interface)
    asked |= changes(arguments)
    if arguments.handshake:
        asked["wait"] = ("s", "handshake")
    if arguments.timeout is not None:
        asked["timeout_usec"] = ("t", round(arguments.timeout * 1_000_000))
    return asked


def transit(arguments: Arguments, client: Client | None = None) -> dict[str, tuple[str, Any]]:
    """The option that says where the ciphertext goes, if the command line does.

    With a client, for a new tunnel, it warns if that does not, and we are in another tunnel's
    namespace.

    Call this before entering a user namespace: from there, other processes' files can't be opened.
    """
    if arguments.via is not None:
        return {"transit_tunnel": ("s", arguments.via)}
    if arguments.transit_pid is not None:
        return {"transit": ("h", open_netns(f"/proc/{arguments.transit_pid}/ns/net"))}
    if arguments.transit_netns is not None:
        return {"transit": ("h", open_netns(arguments.transit_netns))}
    if arguments.transit_fd is not None:
        return {"transit_sockets": ("ah", arguments.transit_fd)}
    if client:
        _warn_if_inside(client)
    return {}


def _warn_if_inside(client: Client) -> None:
    """Warn if we are in a tunnel's namespace: the new tunnel does not go through that one.

    In the initial user namespace we can't be, and save the call.
    """
    if os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE:
        return
    with open("/proc/self/ns/net") as netns, contextlib.suppress(Failure):
        found = (names.ROOT_PATH, names.MANAGER, "GetTunnelByNetns", "h", netns.fileno())
        outer = client.tunnel(*client.call(*found, start=False))["Name"]
        text = f"warning: this is inside '{outer}', but the new tunnel leaves by the host's network"
        complain(text, f"'--via {outer}' sends it through '{outer}'")


def open_netns(path: str) -> int:
    """Open a namespace that another process made."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "expected a process of yours, or the file of its network namespace"
        raise of_kernel(error, hint) from None


def changes(arguments: Arguments) -> dict[str, tuple[str, Any]]:
    """The options from the command line that Reconfigure has too."""
    asked: dict[str, tuple[str, Any]] = {}
    if arguments.mtu is not None:
        asked["mtu"] = ("u", arguments.mtu)
    if arguments.ignore:
        asked["ignore"] = ("as", arguments.ignore)
    return asked


def begin(client: Client, netns: int, conf: Conf, asked: dict[str, tuple[str, Any]]) -> Reply:
    """Ask for the tunnel without waiting for it."""
    body = (netns, conf.fd, asked)
    reply = client.begin(names.ROOT_PATH, names.MANAGER, "CreateTunnel", "hha{sv}", *body)
    # Else we would have them for as long as we run, and so would a command.
    sockets = asked.get("transit_sockets", ("ah", ()))[1]
    for fd in {*asked.get("transit", ("h",))[1:], *sockets}:
        os.close(fd)
    return reply


def finish(reply: Reply, asked: dict[str, tuple[str, Any]]) -> str:
    """Wait for the tunnel and return its path. Raises Failure."""
    what = "waiting for a handshake" if "wait" in asked else "waiting for the tunnel"
    _, usec = asked.get("timeout_usec", ("t", 20_000_000))  # the daemon's default
    with progress.show(what) as callback:
        (path,) = reply.wait(callback, usec / 1e6 + START_TIME)
    return str(path)
