"""What passes on the host's interfaces, as root's tests/stage/capture.py sees it."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support.stage import Control

REPORT = Path("/run/wg4netnsd-captured.json")
INITIATION, RESPONSE = 1, 2

_CONTROL_PORT = 4009
_UNUSED = "198.51.100.254"
"""An inner address that nobody has, and that leads nowhere."""


@dataclass(frozen=True)
class Handshake:
    """A message of one."""

    at: float
    """CLOCK_MONOTONIC, in seconds."""
    type: int
    client_port: int
    from_client: bool


@dataclass(frozen=True)
class Finding:
    """A packet that ought not to be there."""

    why: str
    interface: str
    source: str
    destination: str
    ports: tuple[int, int]

    @property
    def is_ours(self) -> bool:
        """Sent by Capture.try_out()."""
        return self.interface == "lo" and self.ports[1] == _CONTROL_PORT


@dataclass(frozen=True)
class Seen:
    packets: dict[str, int]
    """By interface."""
    encrypted: dict[str, int]
    """WireGuard's transport data, in bytes, by interface."""
    handshakes: list[Handshake]
    findings: list[Finding]
    found: int
    """How many findings there were; not all of a great many are listed."""
    missed: int
    """How many packets came faster than they were looked at."""

    @property
    def leaks(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.is_ours]

    def tried(self, why: str) -> int:
        """How many of those that try_out() sent were found."""
        return sum(finding.is_ours and finding.why == why for finding in self.findings)


class Capture:
    """While it is entered, each packet of the host is looked at, also for the marker."""

    def __init__(self, control: Control, marker: bytes) -> None:
        self._control = control
        self._marker = marker
        self._runs = False

    def try_out(self) -> None:
        """Send what it has to find: over loopback, the marker, and a tunnel's inner address."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            sender.bind(("127.0.0.1", _CONTROL_PORT))  # else ICMP would quote it
            sender.sendto(b"before" + self._marker + b"after", ("127.0.0.1", _CONTROL_PORT))
            sender.sendto(b"to an inner address", (_UNUSED, _CONTROL_PORT))

    def finish(self) -> Seen:
        self._runs = False
        self._control.capture_stop()
        told: dict[str, Any] = json.loads(REPORT.read_text())
        return Seen(
            **told
            | {
                "handshakes": [Handshake(at / 1e9, *rest) for at, *rest in told["handshakes"]],
                "findings": [
                    Finding(**each | {"ports": tuple(each["ports"])}) for each in told["findings"]
                ],
            }
        )

    def __enter__(self) -> Self:
        self._control.capture_start(self._marker)
        self._runs = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._runs:
            self._control.capture_stop()
