"""What systemd is told: that we are ready, and that we stop."""

from __future__ import annotations

import systemd.daemon


def notify_ready() -> None:
    """To be sent when calls are answered; sd_notify(3)."""
    systemd.daemon.notify("READY=1")


def notify_stopping(why: str) -> None:
    systemd.daemon.notify(f"STOPPING=1\nSTATUS={why}")
