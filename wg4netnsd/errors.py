"""All errors that a caller can get.

    Error
    ├── InvalidConfig    the configuration is invalid, or asks for more than the daemon can do
    ├── InvalidNetns     not a network namespace, not the caller's, or the host's
    ├── AlreadyExists    the name, the namespace or the interface is taken
    ├── NoSuchTunnel     no tunnel of that name or namespace, or it was closed meanwhile
    ├── LimitExceeded    a limit of the daemon is reached
    ├── TunFailed        the kernel refused to create or to configure the interface
    ├── SocketFailed     the kernel refused a socket in the namespace
    ├── EngineFailed     wireguard-go could not be started or set up, or resolv.conf not be written
    ├── Timeout          the time that the caller allowed is over
    ├── ShuttingDown     the daemon is ending
    ├── Unresolved       a host name does not exist or has no address, or no server knows it
    ├── NoNameServer     the tunnel's configuration has no DNS server
    ├── InvalidArgs, UnknownObject, UnknownInterface, UnknownMethod, UnknownProperty,
    │   PropertyReadOnly                      the standard errors of D-Bus
    └── Failed           an internal error; the journal has the details

`str()` begins with the short name, because `busctl` prints an error's message without its name.
No message holds key material.
"""

from __future__ import annotations

import errno
import functools
import re
from typing import ClassVar, Final

from wg4netnsd import names

_KEY_LIKE: Final = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_HALF_A_KEY: Final = re.compile(r"[A-Za-z0-9+/]{21,}")
"""A key has 43 characters before its `=`. With any one of them wrong, 21 are left in a row."""
_BETWEEN: Final = re.compile(r"[^A-Za-z0-9+/.:-]+")
"""Characters that may have got between a key's, except those of addresses and host names."""
_WORD: Final = re.compile(r"[a-z0-9]{1,7}|[A-Z0-9]{1,7}|([A-Z]?[a-z]{3,}|[A-Z]{2,}s?)+")
"""A word with upper and lower case as people mix them: VPN.Example.org, AllowedIPs."""
_MAX_SHOWN: Final = 60  # characters

SHORTAGE: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
"""The kernel's errors for want of a process, memory or an fd; ETOOMANYREFS if too many fds are in
flight through sockets."""


def redact(text: str) -> str:
    """Replace anything in `text` that may be a key: 40 or more characters of base64 or hex."""
    return _KEY_LIKE.sub("…", text)


def may_hold_key(text: str, value: str = "", line: str = "") -> bool:
    """Return whether `text` could be a part of a key, however mangled.

    `text` was cut out of `value`, the value of `line`. Half a key in a row is recognised by its
    length: in `line` as it is, in `text` and `value` without the characters between a key's. A
    shorter part is recognised by its upper and lower case, which are not mixed as in words.
    """
    joined = (_BETWEEN.sub("", each) for each in (text, value))
    if len(text) > _MAX_SHOWN or any(map(_HALF_A_KEY.search, (line, *joined))):
        return True
    parts = re.findall(r"[A-Za-z0-9+/]+", text)
    characters = "".join(parts)
    return (
        len(characters) >= 8
        and characters not in (characters.lower(), characters.upper())
        and not all(map(_WORD.fullmatch, parts))
    )


def quote(text: str, value: str = "", line: str = "") -> str:
    """Return `text` as an error may show it: printable, or hidden if may_hold_key().

    Every part of a configuration that an error shows must pass through here.
    """
    return "'…' (hidden: it may hold a key)" if may_hold_key(text, value, line) else repr(text)


class Error(Exception):
    """An expected failure; `text` has the operation and the offending value."""

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


class SocketFailed(Error): ...


class EngineFailed(Error): ...


class Timeout(Error): ...


class ShuttingDown(Error): ...


class Unresolved(Error): ...


class NoNameServer(Error): ...


class StandardError(Error):
    """An error that D-Bus itself defines."""

    prefix = names.STANDARD_ERROR


class InvalidArgs(StandardError): ...


class UnknownObject(StandardError): ...


class UnknownInterface(StandardError): ...


class UnknownMethod(StandardError): ...


class UnknownProperty(StandardError): ...


class PropertyReadOnly(StandardError): ...


class Failed(StandardError): ...


def by_name(short_name: str, text: str) -> Error:
    """Return the error with that short name. Raises KeyError if there is none."""
    return _errors_by_name()[short_name](text)


def from_os_error(error: OSError, text: str, otherwise: type[Error]) -> Error:
    """Return a LimitExceeded if the kernel lacks a resource, else an error of type `otherwise`."""
    return LimitExceeded(text) if error.errno in SHORTAGE else otherwise(text)


@functools.cache
def _errors_by_name() -> dict[str, type[Error]]:
    every = [Error]
    for each in every:
        every += each.__subclasses__()
    return {each.__name__: each for each in every}
