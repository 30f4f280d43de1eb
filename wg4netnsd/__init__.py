"""A per-user daemon that gives unprivileged network namespaces a WireGuard interface."""

from importlib.metadata import version

__version__ = version("wg4netnsd")
