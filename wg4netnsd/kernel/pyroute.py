"""pyroute2's message classes, imported without the rest of the package.

`import pyroute2` takes 0.1 s on a quiet machine and 0.4 s on a busy one, since its __init__ imports
every protocol that the package knows. The message classes take a sixth of that. So while they are
imported, a bare module stands in for the package: it has the package's path and has run nothing.
It goes away afterwards, and a later `import pyroute2` is the real one, with the same classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

__all__ = ["ifaddrmsg", "ifinfmsg", "netlink", "nsidmsg", "rtmsg", "rtnl"]


@contextlib.contextmanager
def _without_init(package: str) -> Iterator[None]:
    """Import modules of the package without running its __init__, if that has not run already."""
    if package in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _without_init("pyroute2"):
    from pyroute2 import netlink
    from pyroute2.netlink import rtnl
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg
