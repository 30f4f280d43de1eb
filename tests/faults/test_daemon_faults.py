"""The daemon fails, or is made to: by whom, how often, and in the middle of what.

Whatever it is, systemd starts the next one, or, if it gives up, nothing is left.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.aftermath import Seen, Then, Tunnel, assert_no_strays
from support.bus import Client, DBusError
from support.configs import Secrets
from support.fds import copied_package
from support.installed import UNIT, assert_nothing_left, crash, main_pid, state, wait_successor
from support.manager import UserManager
from support.namespaces import Namespace, ping
from support.processes import is_alive, of_program, wait_for
from support.stage import Stage
from support.tamper import changed_unit


def tunnel(client: Client, inside: Namespace, conf: str, **options: str) -> Tunnel:
    path = client.create(inside, conf, **options)
    return Tunnel(inside, path, Seen.of(client, path))


# ---------------------------------------------------------------- it hangs, it has a defect


def hang(manager: UserManager, package: Path) -> None:
    """Its event loop stands still; the watchdog's time is 2 s here."""
    os.kill(main_pid(manager), signal.SIGSTOP)


def lose_its_agent(manager: UserManager, package: Path) -> None:
    """Without it there can be no tunnel, and it can't be started anew."""
    children = Path(f"/proc/{main_pid(manager)}/task/{main_pid(manager)}/children").read_text()
    (agent,) = [
        pid
        for pid in map(int, children.split())
        if Path(f"/proc/{pid}/comm").read_text() == "wg4netns-agent\n"
    ]
    os.kill(agent, signal.SIGKILL)


def raise_in_main(manager: UserManager, package: Path) -> None:
    """An exception that nobody expects, in the coroutine that runs all the time."""
    (package / "defect").touch()


DEFECT = """
import asyncio as _asyncio
_first_end = _Fi
"""
