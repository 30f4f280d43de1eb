"""A per-user daemon that gives unprivileged network namespaces a WireGuard interface."""

__version__ = "0.1.0"
