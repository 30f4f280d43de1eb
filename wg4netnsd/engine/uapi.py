"""WireGuard's configuration protocol, UAPI: encode requests, parse answers, and exchange them.

See "Cross-platform Userspace Implementation" on wireguard.com. The answer to a `get` holds the
private key, so nothing here is ever logged.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import socket
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from wg4netnsd.config.model import Config, Network, Peer
from wg4netnsd.errors import EngineFailed, Timeout

REPLY_TIME: Final = 10.0
"""Seconds. A healthy engine answers within a millisecond, unless the whole machine stalls."""

MAX_REPLY: Final = 16 << 20
"""Bytes. A peer with ten allowed IPs needs about 700."""


@dataclass
class PeerStatus:
    """One peer as the engine knows it. `last_handshake_usec` is CLOCK_REALTIME; 0 for never."""

    public_key: str
    endpoint: str = ""
    last_handshake_usec: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    persistent_keepalive: int = 0
    session_age: float | None = None  # seconds; None without a session
    allowed_ips: list[str] = field(default_factory=list)


@dataclass
class DeviceStatus:
    public_key: str = ""
    listen_port: int = 0
    peers: list[PeerStatus] = field(default_factory=list)


# ---------------------------------------------------------------- requests


def encode_set(
    config: Config,
    *,
    mtu: int,
    endpoints: Mapping[str, str],
    initiate: Collection[str] = (),
) -> bytes:
    """Return the `set` that makes a new engine run `config`.

    `endpoints` maps public keys to ADDRESS:PORT; a peer without one waits for the far end's first
    packet. `initiate` has the public keys of peers to begin a handshake with at once. The port is
    that of the engine's UDP sockets.
    """
    lines = ["set=1", _private_key(config), f"mtu={mtu}", "replace_peers=true"]
    for peer in config.peers:
        lines += _new_peer(peer, endpoints.get(peer.public_key), peer.allowed_ips)
        if peer.public_key in initiate:
            lines.append(INITIATE)
    return _text(lines)


def encode_change(old: Config, new: Config, *, mtu: int, endpoints: Mapping[str, str]) -> bytes:
    """Return the `set` that takes an engine from `old` to `new`, except for its port.

    A peer that stays gets only its differences, so it keeps its session. `endpoints` maps the
    public keys of peers that are new or have another Endpoint to ADDRESS:PORT.
    """
    lines = ["set=1"]
    if new.interface.private_key != old.interface.private_key:
        lines.append(_private_key(new))
    lines.append(f"mtu={mtu}")
    before = {peer.public_key: peer for peer in old.peers}
    gains, losses = _network_changes(old, new)
    for peer in new.peers:
        key = peer.public_key
        known = before.pop(key, None)
        if known is None:
            lines += _new_peer(peer, endpoints.get(key), gains[key])
            continue
        lines.append(f"public_key={_hex(key)}")
        if peer.preshared_key != known.preshared_key:
            lines.append(_preshared_key(peer))
        if peer.endpoint != known.endpoint and key in endpoints:
            lines.append(f"endpoint={endpoints[key]}")
        if peer.persistent_keepalive != known.persistent_keepalive:
            lines.append(f"persistent_keepalive_interval={peer.persistent_keepalive}")
        # One by one: replace_allowed_ips would leave the peer with none for a moment.
        lines += [f"allowed_ip={network}" for network in gains[key]]
        lines += [f"allowed_ip=-{network}" for network in losses[key]]
    for public_key in before:  # last, when their networks have moved to other peers
        lines += [f"public_key={_hex(public_key)}", "remove=true"]
    return _text(lines)


def encode_mtu(mtu: int) -> bytes:
    return _text(["set=1", f"mtu={mtu}"])


def encode_initiate(public_keys: Iterable[str]) -> bytes:
    """Return the `set` that begins a handshake with each of the peers now."""
    lines = [line for key in public_keys for line in (*_known_peer(key), INITIATE)]
    return _text(["set=1", *lines])


def encode_endpoint(public_key: str, endpoint: str, *, initiate: bool) -> bytes:
    """Return the `set` that gives a peer an endpoint, and begins a handshake if `initiate`."""
    lines = ["set=1", *_known_peer(public_key), f"endpoint={endpoint}"]
    return _text([*lines, INITIATE] if initiate else lines)


INITIATE: Final = "initiate=true"
"""A key of our own; see wireguard-go.patch."""


def _new_peer(peer: Peer, endpoint: str | None, networks: Iterable[Network]) -> list[str]:
    lines = [f"public_key={_hex(peer.public_key)}"]
    if peer.preshared_key:
        lines.append(_preshared_key(peer))
    if endpoint:
        lines.append(f"endpoint={endpoint}")
    lines.append("replace_allowed_ips=true")
    lines += [f"allowed_ip={network}" for network in networks]
    lines.append(f"persistent_keepalive_interval={peer.persistent_keepalive}")
    return lines


def _known_peer(public_key: str) -> tuple[str, str]:
    return f"public_key={_hex(public_key)}", "update_only=true"


def _network_changes(
    old: Config, new: Config
) -> tuple[defaultdict[str, list[Network]], defaultdict[str, list[Network]]]:
    """Return, by public key, the networks that move to a peer, and those that lead nowhere now."""
    gains, losses = defaultdict[str, list[Network]](list), defaultdict[str, list[Network]](list)
    owners, new_owners = _owners(old), _owners(new)
    for network, owner in new_owners.items():
        if owners.get(network) != owner:
            gains[owner].append(network)
    for network, owner in owners.items():
        if network not in new_owners:
            losses[owner].append(network)
    return gains, losses


def _owners(config: Config) -> dict[Network, str]:
    """Map each network to the public key of the last peer that lists it, as the engine does."""
    return {network: peer.public_key for peer in config.peers for network in peer.allowed_ips}


def _private_key(config: Config) -> str:
    return f"private_key={config.interface.private_key.get_secret_value().hex()}"


def _preshared_key(peer: Peer) -> str:
    key = peer.preshared_key.get_secret_value() if peer.preshared_key else bytes(32)
    return f"preshared_key={key.hex()}"


def _hex(public_key: str) -> str:
    return base64.b64decode(public_key).hex()


def _text(lines: list[str]) -> bytes:
    return "\n".join(lines).encode() + b"\n\n"


# ---------------------------------------------------------------- answers

GET: Final = b"get=1\n\n"


def parse_get(reply: bytes) -> DeviceStatus:
    """Parse the answer to a `get`. Secrets are dropped, and unknown keys ignored.

    Raises EngineFailed if the answer is malformed.
    """
    device = DeviceStatus()
    try:
        for line in reply.decode("ascii").splitlines():
            key, equals, value = line.partition("=")
            if not equals or not line.isprintable():
                raise ValueError
            if key == "public_key":
                device.peers.append(PeerStatus(_base64(value)))
            elif device.peers:
                _parse_peer_line(device.peers[-1], key, value)
            elif key == "listen_port":
                device.listen_port = _number(value, 16)
            elif key == "own_public_key":  # a key of our own
                device.public_key = _base64(value)
    except ValueError:
        raise EngineFailed("the engine's status is malformed") from None
    return device


def _parse_peer_line(peer: PeerStatus, key: str, value: str) -> None:
    match key:
        case "endpoint":
            peer.endpoint = value
        case "last_handshake_time_sec":
            peer.last_handshake_usec += _number(value, 32) * 1_000_000
        case "last_handshake_time_nsec":
            peer.last_handshake_usec += _number(value, 32) // 1_000
        case "rx_bytes":
            peer.rx_bytes = _number(value, 64)
        case "tx_bytes":
            peer.tx_bytes = _number(value, 64)
        case "persistent_keepalive_interval":
            peer.persistent_keepalive = _number(value, 16)
        case "session_age_ms":  # a key of our own
            peer.session_age = _number(value, 64) / 1000
        case "allowed_ip":
            peer.allowed_ips.append(value)


def _number(text: str, bits: int) -> int:
    """Parse a number that fits into `bits` bits on D-Bus. Raises ValueError."""
    value = int(text)
    if value < 0 or value >> bits:
        raise ValueError
    return value


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


# ---------------------------------------------------------------- the client


class ConnectionLost(EngineFailed):
    """A connection that failed or was lost: the engine has ended or is ending."""

    short_name = EngineFailed.__name__


async def request(socket_path: str, *texts: bytes) -> bytes:
    """Send each `set` or `get` in turn; return the last answer, without its `errno=0`.

    The first refusal ends the connection: the engine would read the rest of a refused `set` as new
    commands. Raises EngineFailed (ConnectionLost if the engine has ended) or Timeout.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            async with asyncio.timeout(REPLY_TIME):
                await asyncio.get_running_loop().sock_connect(connection, socket_path)
                body = b""
                for text in texts:
                    body = _check_errno(await _exchange(connection, text))
                return body
    except TimeoutError:
        raise Timeout(f"the engine gave no answer within {REPLY_TIME:g} s") from None
    except OSError as error:
        raise ConnectionLost(f"the engine can't be reached: {error.strerror}") from None


async def _exchange(connection: socket.socket, text: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, text)
    reply = bytearray()
    while not reply.endswith(b"\n\n"):
        data = await loop.sock_recv(connection, 65536)
        if not data or len(reply) > MAX_REPLY:
            raise ConnectionLost("the engine's answer was cut off")
        reply += data
    return bytes(reply)


def _check_errno(reply: bytes) -> bytes:
    body, _, status = reply.strip(b"\n").rpartition(b"errno=")
    try:
        code = -int(status)
    except ValueError:
        raise EngineFailed("the engine's answer has no errno") from None
    if code:
        known = errno.errorcode.keys() & {abs(code)}
        why = os.strerror(abs(code)) if known else "an unknown error"
        raise EngineFailed(f"the engine refused its configuration: {why}")
    return body
