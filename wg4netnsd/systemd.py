"""What systemd is told: that we are ready, that we stop, and what to log."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

import systemd.daemon

_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # sd-daemon(3)


def notify_ready() -> None:
    """To be sent when calls are answered; sd_notify(3)."""
    systemd.daemon.notify("READY=1")


def notify_stopping(why: str) -> None:
    systemd.daemon.notify(f"STOPPING=1\nSTATUS={why}")


def notify_alive() -> None:
    """For the watchdog; systemd.service(5), WatchdogSec=."""
    systemd.daemon.notify("WATCHDOG=1")


def watchdog_time() -> float | None:
    """Seconds within which notify_alive() is to be called; None where nobody waits for it."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() else None


def unit() -> str:
    """The name of the service whose cgroup we are in; empty where it is none of a service."""
    name = cgroup().rpartition("/")[2]
    return name if name.endswith(".service") else ""


def cgroup() -> str:
    """Our cgroup of the unified hierarchy, as cgroups(7) has it in /proc/PID/cgroup."""
    return Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()


# ---------------------------------------------------------------- the fd store


def is_supervising() -> bool:
    """Did systemd start us, and may it so hold what is to outlive us?"""
    return "NOTIFY_SOCKET" in os.environ


def store_fd(name: str, fd: int) -> None:
    """Have systemd hold a copy; FDSTORE= in sd_notify(3)."""
    systemd.daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=[fd])


def remove_stored_fd(name: str) -> None:
    systemd.daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def barrier(fd: int) -> None:
    """Have systemd close a copy of `fd` once it has done all before; sd_notify_barrier(3)."""
    systemd.daemon.notify("BARRIER=1", fds=[fd])


def inherited_fds() -> list[tuple[int, str]]:
    """What it held since a daemon before us, with the names; sd_listen_fds_with_names(3)."""
    found = systemd.daemon.listen_fds_with_names()
    for fd in found:
        os.set_inheritable(fd, False)
    return list(found.items())


def log_to_stderr(level: int) -> None:
    """Readable lines; with sd-daemon(3)'s priorities where stderr is the journal's."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JournalFormatter() if _stderr_is_journal() else _TerminalFormatter())
    logging.basicConfig(level=level, handlers=[handler])


class _TerminalFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _stderr_is_journal() -> bool:
    """$JOURNAL_STREAM is the device and inode of the stream (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
