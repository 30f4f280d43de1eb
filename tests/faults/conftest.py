"""The shipped unit in a real `systemd --user`."""

from collections.abc import Iterator

import pytest

from support.manager import UNIT, UserManager, installed, user_manager
from support.processes import of_program, wait_for
from support.stage import Stage


@pytest.fixture(scope="module")
def manager(stage: Stage, bus_program: str) -> Iterator[UserManager]:
    with user_manager(bus_program) as started, installed(started):
        yield started


@pytest.fixture
def unit(manager: UserManager) -> Iterator[UserManager]:
    """The manager with the shipped unit, of which nothing runs before and after."""
    manager.systemctl("reset-failed")  # also its count of starts
    yield manager
    manager.systemctl("stop", UNIT)
    wait_for(lambda: not of_program("wireguard-go"), "no engine outlives a stop")
