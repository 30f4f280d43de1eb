"""From a configuration and a namespace to a tunnel: what `run`, `up` and `attach` share."""

from __future__ import annotations

import os
from argparse import Namespace as Arguments
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from wg4netnsd import names
from wg4netnsd.ctl import progress
from wg4netnsd.ctl.client import Client, Reply
from wg4netnsd.ctl.failure import INVALID_CONFIG, Failure, of_kernel

SUFFIX = ".conf"


class Conf(NamedTuple):
    """A configuration, open, and the name that it suggests for a tunnel."""

    fd: int
    path: str
    name: str


def conf_path(conf: str) -> str:
    """A path as it is; a bare NAME means ~/.config/wg4netnsd/NAME.conf."""
    if "/" in conf or conf.endswith(SUFFIX):
        return conf
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(configuration, "wg4netnsd", conf + SUFFIX)


@contextmanager
def opened(conf: str) -> Iterator[Conf]:
    """The configuration, for the daemon to read: so `/dev/stdin` or a pipe will do as well.

    Who refuses it in this block is told its path.
    """
    path = conf_path(conf)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "" if path == conf else f"'{conf}' is a name; a path has a / or ends in {SUFFIX}"
        raise of_kernel(error, hint, INVALID_CONFIG) from None
    try:
        yield Conf(fd, path, os.path.basename(path).removesuffix(SUFFIX))
    except Failure as failure:
        if failure.status != INVALID_CONFIG:
            raise
        # Its text names the bus's option, for who calls it by other means.
        hint = "'--ignore KEY' is that option" if "ignore=" in str(failure) else ""
        raise Failure(f"{path}: {failure}", hint, failure.status) from None
    finally:
        os.close(fd)


def suggested_name(name: str, suffix: str = "") -> str:
    """As far as a tunnel can be called so; else empty: then the daemon chooses."""
    short = name[: 48 - len(suffix)] + suffix
    return short if names.TUNNEL_NAME.fullmatch(short) else ""


def options(arguments: Arguments, name: str, **more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    """Those of CreateTunnel that the command line has, and more of them."""
    asked = dict(more)
    if name := arguments.name or name:
        asked["name"] = ("s", name)
    if arguments.interface:
        asked["interface"] = ("s", arguments.interface)
    if arguments.mtu:
        asked["mtu"] = ("u", arguments.mtu)
    if arguments.ignore:
        asked["ignore"] = ("as", arguments.ignore)
    if arguments.handshake:
        asked["wait"] = ("s", "handshake")
    if arguments.timeout:
        asked["timeout_usec"] = ("t", round(arguments.timeout * 1_000_000))
    return asked


def begin(client: Client, netns: int, conf: Conf, asked: dict[str, tuple[str, Any]]) -> Reply:
    """Ask for the tunnel; nobody waits for it yet."""
    body = (netns, conf.fd, asked)
    return client.begin(names.ROOT_PATH, names.MANAGER, "CreateTunnel", "hha{sv}", *body)


def finish(reply: Reply, asked: dict[str, tuple[str, Any]]) -> str:
    """Wait for the tunnel's path. Raises Failure."""
    what = "waiting for a handshake" if "wait" in asked else "waiting for the tunnel"
    with progress.shown(what) as waiting:
        (path,) = reply.wait(waiting)
    return str(path)
