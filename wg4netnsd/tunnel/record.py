"""The record of a tunnel, which the next daemon adopts it from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wg4netnsd.config import wgquick
from wg4netnsd.config.model import PATH_MTU, Config
from wg4netnsd.engine.events import PROTOCOL, Timers
from wg4netnsd.errors import Error, Failed, by_name
from wg4netnsd.systemd.fdstore import FdStore, InheritedFds
from wg4netnsd.tunnel.forward import ForwardSpec
from wg4netnsd.tunnel.lifetime import Lifetime
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import HOST, TransitSpec

if TYPE_CHECKING:
    from wg4netnsd.tunnel.tunnel import Tunnel


class Unreadable(Exception):
    """A record that is missing, damaged, or written by an unknown version of the daemon."""


def _known_error(error: tuple[str, str]) -> tuple[str, str]:
    """Turn an error that only another version of the daemon knows into a Failed."""
    try:
        by_name(*error)
    except KeyError:
        return Failed.__name__, ": ".join(error)
    return error


KnownError = Annotated[tuple[str, str], AfterValidator(_known_error)]
"""An error's short name and its text."""


class PendingChange(BaseModel):
    """A reconfiguration that has begun."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    mtu_option: int | None
    config: str = Field(repr=False)


class Record(BaseModel):
    """A tunnel's record. It holds private keys, so it may only be stored in a sealed memfd.

    `repr()` shows no key. A new field needs a default: the records of earlier daemons lack it. A
    daemon that does not know a field ends the tunnel, so a downgrade may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = 1
    protocol: int = PROTOCOL  # events.PROTOCOL of the engine's daemon
    serial: int  # higher is newer
    name: str
    interface: str
    lifetime: Lifetime
    client: str
    mtu_option: int | None
    handshake: bool
    path_mtu: int = PATH_MTU  # records of earlier versions lack it
    root_trusted: bool = False  # records of earlier versions lack it
    transit: TransitSpec = HOST  # the same
    config: str = Field(repr=False)  # wg-quick's format
    change: PendingChange | None  # in progress: it may be applied in part
    netns: tuple[int, int]  # device and inode
    created_usec: int
    listen_port: int
    restart_count: int
    error: KnownError | None  # the newest error
    timers: Timers
    forwards: tuple[ForwardSpec, ...] = ()  # records of earlier versions lack it

    @classmethod
    def from_spec(cls, spec: Spec, changing_to: Spec | None, **state: object) -> Self:
        return cls.model_validate(
            {
                "name": spec.name,
                "interface": spec.interface,
                "lifetime": spec.lifetime,
                "client": spec.client,
                "mtu_option": spec.mtu_option,
                "handshake": spec.handshake,
                "path_mtu": spec.path_mtu,
                "root_trusted": spec.root_trusted,
                "transit": spec.transit,
                "config": wgquick.render(spec.config),
                "change": changing_to
                and PendingChange(
                    mtu_option=changing_to.mtu_option, config=wgquick.render(changing_to.config)
                ),
                **state,
            }
        )

    def spec(self) -> Spec:
        return Spec(
            name=self.name,
            interface=self.interface,
            lifetime=self.lifetime,
            client=self.client,
            config=_parse(self.config),
            mtu_option=self.mtu_option,
            handshake=self.handshake,
            path_mtu=self.path_mtu,
            root_trusted=self.root_trusted,
            transit=self.transit,
        )

    def changing_to(self) -> Spec | None:
        """Return the spec that a change in progress leads to; None if there is none."""
        if not self.change:
            return None
        config = _parse(self.change.config)
        return replace(self.spec(), config=config, mtu_option=self.change.mtu_option)

    def encode(self) -> bytes:
        return self.model_dump_json().encode()


def _parse(text: str) -> Config:
    return wgquick.parse(text.encode(), max_size=wgquick.MAX_RENDERED)


class RecordWriter:
    """A writer of a tunnel's records to the fd store, once the tunnel is complete."""

    def __init__(self, fd_store: FdStore, tunnel: Tunnel) -> None:
        self.changing_to: Spec | None = None
        """The spec that a change in progress leads to."""
        self._fd_store = fd_store
        self._tunnel = tunnel
        self._serial = 0  # of the next record; 0: the tunnel must not be adopted yet

    def start(self, serial: int) -> None:
        self._serial = serial

    def write(self) -> None:
        """Store a record of the tunnel as it is now in place of the last."""
        if self._serial:
            tunnel = self._tunnel
            record = Record.from_spec(
                tunnel.spec,
                self.changing_to,
                serial=self._serial,
                netns=tunnel.netns_id,
                created_usec=tunnel.created_usec,
                listen_port=tunnel.engine.listen_port,
                restart_count=tunnel.restart_count,
                error=(tunnel.error.short_name, tunnel.error.text) if tunnel.error else None,
                timers=tunnel.peers.timers,
                forwards=tunnel.forwards.saved(),
            )
            self._fd_store.put_record(record.encode())
            self._serial += 1

    @contextlib.contextmanager
    def changing(self, new: Spec) -> Iterator[None]:
        """Record that a change is in progress, for a daemon that adopts the tunnel meanwhile.

        After a change that failed half-way, the record stays so until the engine was replaced.
        """
        self.changing_to = new
        self.write()
        try:
            yield
        finally:
            if not self._tunnel.engine.half_changed:
                self.changing_to = None
            self.write()


class SavedTunnel(NamedTuple):
    """A tunnel of an earlier daemon, as systemd passed it to us."""

    record: Record
    fds: InheritedFds


def read_newest(contents: Iterable[bytes]) -> Record:
    """Return the newest record that can be read. Raises Unreadable if none can."""
    readable, problem = [], "no record"
    for content in contents:
        try:
            record = Record.model_validate_json(content)
            record.spec()
            record.changing_to()
            readable.append(record)
        except ValidationError as error:
            first = error.errors(include_input=False, include_context=False, include_url=False)[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
        except Error as error:
            problem = f"its configuration: {error.text}"
    if not readable:
        raise Unreadable(problem)
    return max(readable, key=lambda record: record.serial)
