"""What a tunnel is, written down for the next daemon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wg4netnsd.config import wgquick
from wg4netnsd.config.model import Config
from wg4netnsd.engine.events import PROTOCOL, Timers
from wg4netnsd.errors import Error, Failed, by_name
from wg4netnsd.systemd.fdstore import FdStore, InheritedFds
from wg4netnsd.tunnel.lifetime import Lifetime
from wg4netnsd.tunnel.spec import Spec


class Unreadable(Exception):
    """There is none, it is damaged, or of a version of the daemon that we know nothing of."""


def _known_error(error: tuple[str, str]) -> tuple[str, str]:
    """Another version of the daemon may have errors that we know nothing of."""
    try:
        by_name(*error)
    except KeyError:
        return Failed.__name__, ": ".join(error)
    return error


KnownError = Annotated[tuple[str, str], AfterValidator(_known_error)]
"""Its short name and its text."""


class PendingChange(BaseModel):
    """A reconfiguration that has begun."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    mtu_option: int | None
    config: str = Field(repr=False)


class Record(BaseModel):
    """Holds private keys, so it is for a sealed memfd alone. `repr()` shows none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = 1
    protocol: int = PROTOCOL  # the engine's
    serial: int  # the higher, the newer
    name: str
    interface: str
    lifetime: Lifetime
    client: str
    mtu_option: int | None
    handshake: bool
    config: str = Field(repr=False)  # wg-quick's format
    change: PendingChange | None  # nobody knows how far it got
    netns: tuple[int, int]  # device and inode
    created_usec: int
    listen_port: int
    restart_count: int
    error: KnownError | None  # the newest
    timers: Timers

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
        )

    def changing_to(self) -> Spec | None:
        """What the change that was begun would have made of it."""
        if not self.change:
            return None
        config = _parse(self.change.config)
        return replace(self.spec(), config=config, mtu_option=self.change.mtu_option)

    def encode(self) -> bytes:
        return self.model_dump_json().encode()


def _parse(text: str) -> Config:
    return wgquick.parse(text.encode(), max_size=wgquick.MAX_RENDERED)


class RecordWriter:
    """Keeps a tunnel's newest record in the fd store, once the tunnel is complete."""

    def __init__(self, fd_store: FdStore) -> None:
        self._fd_store = fd_store
        self._serial = 0  # of the next record; 0: the tunnel must not be taken over yet

    def start(self, serial: int) -> None:
        self._serial = serial

    def write(self, spec: Spec, changing_to: Spec | None, **state: object) -> None:
        """Store a record in place of the last; the arguments are those of Record.from_spec()."""
        if self._serial:
            record = Record.from_spec(spec, changing_to, serial=self._serial, **state)
            self._fd_store.put_record(record.encode())
            self._serial += 1


class SavedTunnel(NamedTuple):
    """A tunnel of an earlier daemon, as systemd handed it over."""

    record: Record
    fds: InheritedFds


def read_newest(contents: Iterable[bytes]) -> Record:
    """The newest of them that can be read. Raises Unreadable."""
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
