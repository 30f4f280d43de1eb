"""Messages to systemd and the fds it holds for us: sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import os

import systemd.daemon


def is_supervised() -> bool:
    """Return whether systemd started this process, reads its messages and can hold its fds."""
    return "NOTIFY_SOCKET" in os.environ


def ready() -> None:
    """Report that the daemon answers calls."""
    systemd.daemon.notify("READY=1")


def status(text: str) -> None:
    """Set the text that `systemctl status` shows."""
    systemd.daemon.notify(_status(text))


def stopping(why: str) -> None:
    """Report that the process is about to end, and why."""
    systemd.daemon.notify(f"STOPPING=1\n{_status(why)}")


def _status(text: str) -> str:
    """Put the text on one line: any further line would be another assignment."""
    return f"STATUS={' '.join(text.split())}"


def alive() -> None:
    """Reset the watchdog; see WatchdogSec= in systemd.service(5)."""
    systemd.daemon.notify("WATCHDOG=1")


def watchdog_time() -> float | None:
    """Return the watchdog's timeout in seconds, or None if this process has no watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() else None


# ---------------------------------------------------------------- the fd store


def store_fd(name: str, fd: int, poll: bool = True) -> None:
    """Have systemd hold a copy of `fd` under `name`.

    With `poll`, it drops the copy when the fd reports an error or a hang-up.
    """
    systemd.daemon.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL={poll:d}", fds=[fd])


def remove_stored_fd(name: str) -> None:
    """Have systemd close every fd that it holds under `name`."""
    systemd.daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def barrier(fd: int) -> None:
    """Have systemd close a copy of `fd` after all earlier messages; sd_notify_barrier(3)."""
    systemd.daemon.notify("BARRIER=1", fds=[fd])


def inherited_fds() -> list[tuple[int, str]]:
    """Return the fds that systemd held for the last daemon, each with its name.

    The caller owns them; they are close-on-exec from here on.
    """
    found = systemd.daemon.listen_fds_with_names()
    for fd in found:
        os.set_inheritable(fd, False)
    return list(found.items())
