"""The buses that other tests run on are what they are said to be."""

import pytest

from support.bus import Bus, Client
from support.buses import BROKER, DAEMON, ON_BOTH
from support.manager import UserManager
from support.processes import program

pytestmark = [ON_BOTH, pytest.mark.distribution]

RUN_AS = {DAEMON: "dbus-daemon", BROKER: "dbus-broker-lau"}  # 15 characters of it: proc(5)
UNIT = {DAEMON: "dbus.service", BROKER: "dbus-broker.service"}


def program_of_bus(address: str) -> str:
    with Client(address) as client:
        return program(client.bus("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus"))


def test_a_bus_without_systemd(bus: Bus, bus_program: str) -> None:
    assert program_of_bus(bus.address) == RUN_AS[bus_program]


def test_a_user_manager_s_bus(user_manager: UserManager, bus_program: str) -> None:
    assert program_of_bus(user_manager.address) == RUN_AS[bus_program]
    assert user_manager.property("dbus.service", "Id") == UNIT[bus_program]
