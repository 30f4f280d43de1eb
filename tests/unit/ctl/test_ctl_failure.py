"""The failures that `wg4netnsctl` makes of the bus's errors."""

import pytest

from wg4netnsd.ctl.failure import DOCTOR, SET_UP, UNREACHABLE, of_bus


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org.freedesktop.DBus.Error.ServiceUnknown", SET_UP),
        ("org.freedesktop.DBus.Error.NameHasNoOwner", DOCTOR),
        ("org.freedesktop.DBus.Error.TimedOut", DOCTOR),
        ("org.freedesktop.DBus.Error.Spawn.ExecFailed", DOCTOR),
        ("org.freedesktop.systemd1.NoSuchUnit", DOCTOR),
    ],
)
def test_a_daemon_that_is_not_started(name: str, hint: str) -> None:
    failure = of_bus(name, "as the bus says")
    assert (failure.status, str(failure), failure.hint) == (UNREACHABLE, "as the bus says", hint)
