"""The closed set of errors that a caller can see.

    Error
    ├── InvalidConfig    the wg-quick text is not one that we can honour
    ├── InvalidNetns     not a network namespace, not the caller's, or the host's
    ├── AlreadyExists    the name, the namespace or the interface is taken
    ├── NoSuchTunnel     no tunnel of that name or namespace, or it was closed meanwhile
    ├── LimitExceeded    a limit of the daemon is reached
    ├── TunFailed        the kernel refused to make or to configure the interface
    ├── EngineFailed     wireguard-go could not be started or set up, or resolv.conf not be written
    ├── Timeout          the time that the caller allowed is over
    ├── ShuttingDown     the daemon is ending
    ├── Unresolved       a host name has no address; seen in LastError only
    ├── InvalidArgs, UnknownObject, UnknownInterface, UnknownMethod, UnknownProperty,
    │   PropertyReadOnly                      the standard ones of D-Bus
    └── Failed           a defect of ours; the journal has the details

`busctl` prints an error's message and never its name, so `str()` begins with the short name.
No message ever holds key material.
"""

from __future__ import annotations

import errno
import functools
import re
from typing import ClassVar, Final

from wg4netnsd import names

_KEY_LIKE: Final = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")


LACKING: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
"""What the kernel says where a process, memory or a descriptor is lacking; the last of these where
too many are on their way through sockets. Such an OSError is a LimitExceeded."""


def redact(text: str) -> str:
    """`text` without anything that may be a key: 40 or more characters of base64 or hex."""
    return _KEY_LIKE.sub("…", text)


class Error(Exception):
    """An expected failure; `text` says the operation and the offending value."""

    prefix: ClassVar[str] = names.ERROR

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def short_name(self) -> str:
        return type(self).__name__

    @property
    def dbus_name(self) -> str:
        return f"{self.prefix}.{self.short_name}"

    def __str__(self) -> str:
        return f"{self.short_name}: {self.text}"


class InvalidConfig(Error): ...


class InvalidNetns(Error): ...


class AlreadyExists(Error): ...


class NoSuchTunnel(Error): ...


class LimitExceeded(Error): ...


class TunFailed(Error): ...


class EngineFailed(Error): ...


class Timeout(Error): ...


class ShuttingDown(Error): ...


class Unresolved(Error): ...


class StandardError(Error):
    """Those that D-Bus itself defines."""

    prefix = names.STANDARD_ERROR


class InvalidArgs(StandardError): ...


class UnknownObject(StandardError): ...


class UnknownInterface(StandardError): ...


class UnknownMethod(StandardError): ...


class UnknownProperty(StandardError): ...


class PropertyReadOnly(StandardError): ...


class Failed(StandardError): ...


def named(short_name: str, text: str) -> Error:
    """The error of that short name. Raises KeyError if there is none."""
    return _named()[short_name](text)


@functools.cache
def _named() -> dict[str, type[Error]]:
    every = [Error]
    for each in every:
        every += each.__subclasses__()
    return {each.__name__: each for each in every}
