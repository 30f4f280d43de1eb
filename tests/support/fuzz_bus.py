"""Messages that no honest client would send, at random.

Most are valid D-Bus, as a bus forwards nothing else, and have anything at all in them: methods of
ours with right and wrong arguments, options of any type, descriptors of every kind, stray replies.
The messages follow from a seed, which a failure names; WG_FUZZ_SEED sets it.
"""

import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jeepney import HeaderFields, Message, MessageType

from support import rawbus
from support.bus import (
    MANAGER,
    NAME,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    TUNNEL,
    Bus,
    Client,
)
from support.configs import Secrets
from support.namespaces import MakeNamespace
from support.rawbus import Raw, Values
from support.stage import Stage
from wg4netnsd import errors

BATCH = 20
SEED = int(os.environ.get("WG_FUZZ_SEED", "20250607"))

TUNNEL_PATH = f"{ROOT}/tunnel/fuzzed"
NO_REPLY_EXPECTED = 1

LISTED = {
    error("").dbus_name
    for error in (*errors.Error.__subclasses__(), *errors.StandardError.__subclasses__())
    if error not in (errors.StandardError, errors.Failed, errors.Unresolved)
}

METHODS = {
    MANAGER: {
        "CreateTunnel": "hha{sv}",
        "CreateTunnelFromPaths": "ssa{sv}",
        "GetTunnel": "s",
        "GetTunnelByNetns": "h",
        "ListTunnels": "",
        "Describe": "",
    },
    TUNNEL: {
        "Close": "",
        "Restart": "",
        "WaitForState": "ast",
        "Reconfigure": "ha{sv}",
        "ReconfigureFromPath": "sa{sv}",
        "GetPeers": "",
        "OpenNetns": "",
    },
    PROPERTIES: {"Get": "ss", "GetAll": "s", "Set": "ssv"},
    OBJECT_MANAGER: {"GetManagedObjects": ""},
    "org.freedesktop.DBus.Introspectable": {"Introspect": ""},
    "org.freedesktop.DBus.Peer": {"Ping": "", "GetMachineId": ""},
}

OPTIONS = {
    "name": "s",
    "interface": "s",
    "lifetime": "s",
    "lease": "h",
    "mtu": "u",
    "wait": "s",
    "timeout_usec": "t",
    "ignore": "as",
}

WORDS = [
    "", "a", "up", "wg0", "lo", "fuzzed", "client", "lease", "persistent", "handshake", "PostUp",
    "Table", "Name", "State", "Peers", "Version", "name", "lifetime", "/", "/proc/self/ns/net",
    "/dev/zero", "/nowhere", "/dev/fd/0", "/proc/1/ns/net", "a\nb", "/a\nb", "/\x1b[31m", "a" * 49,
    "/" + "b" * 4200, MANAGER, TUNNEL, "org.example.Other", PROPERTIES,
]  # fmt: skip


class Descriptors(NamedTuple):
    """To be passed along, by what they may be good for."""

    namespaces: list[int]
    configs: list[int]
    others: list[int]


class Fuzzer:
    """Makes messages, sends them, and judges what comes back."""

    def __init__(self, bus: Bus, fds: Descriptors, words: list[str]) -> None:
        self.rng = random.Random(SEED)
        self.answers: dict[str, int] = {}
        self.disconnected = 0
        self._bus = bus
        self._fds = fds
        self._values = Values(self.rng, words)
        self._last: list[Raw] = []
        self._client = Client(bus.address)

    def send_batch(self) -> None:
        """Some messages at once, and the answers to all that have to be answered."""
        self._last = [self._message() for _ in range(BATCH)]
        expected = set()
        try:
            for raw in self._last:
                serial = next(self._client.connection.outgoing_serial)
                data = raw.data(serial)
                if self.rng.random() < 0.015:
                    data = self._broken(data)
                elif self._is_answered(raw):
                    expected.add(serial)
                raw.send(self._client.connection.sock, data)
            while expected:
                reply = self._client.connection.receive(timeout=30)
                self._judge(reply)
                expected.discard(reply.header.fields.get(HeaderFields.reply_serial, 0))
        except ConnectionError:  # by the bus, for what is no D-Bus
            self.disconnected += 1
            self.reconnect()
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"seed {SEED}: {error!r}, one of {self._last}") from error

    def reconnect(self) -> None:
        self._client.close()
        self._client = Client(self._bus.address)

    def close(self) -> None:
        self._client.close()

    def _is_answered(self, raw: Raw) -> bool:
        waits = any(code == rawbus.MEMBER and v == "WaitForState" for code, _, v in raw.fields)
        return raw.type == rawbus.METHOD_CALL and not raw.flags & NO_REPLY_EXPECTED and not waits

    def _judge(self, reply: Message) -> None:
        fields = reply.header.fields
        for value in reply.body:
            if hasattr(value, "close"):  # a descriptor
                value.close()
        if reply.header.message_type is not MessageType.error:
            self._count(str(reply.header.message_type.name))
            return
        name = fields[HeaderFields.error_name]
        self._count(name.rpartition(".")[2])
        if fields[HeaderFields.sender] == "org.freedesktop.DBus":
            return
        (text,) = reply.body
        assert name in LISTED, (name, text)
        assert text.startswith(f"{name.rpartition('.')[2]}: "), (name, text)
        assert text.isprintable(), (name, text)
        assert len(text) <= 1000, (name, text)

    def _count(self, what: str) -> None:
        self.answers[what] = self.answers.get(what, 0) + 1

    # ------------------------------------------------------------ messages

    def _message(self) -> Raw:
        rng = self.rng
        make: Callable[[], Raw] = rng.choices(
            [self._right, self._wrong_arguments, self._anything, self._no_call, self._large],
            [50, 20, 15, 10, 2],
        )[0]
        raw = make()
        # jeepney needs little-endian answers alone, and gets them.
        raw.big_endian = rng.random() < 0.1
        raw.flags |= rng.choice([0, 0, 0, 0, NO_REPLY_EXPECTED, 2, 4, 6, 0xF8])
        if rng.random() < 0.05:
            kind = self._values.signature()  # a field of the future
            raw.fields.append((rng.randint(10, 255), kind, self._values.of(kind)))
        raw.fields.append((rawbus.DESTINATION, "s", NAME))
        return raw

    def _right(self) -> Raw:
        """A method of ours with the arguments that it takes, sensible or not."""
        interface = self.rng.choice([MANAGER, MANAGER, TUNNEL, TUNNEL, *METHODS])
        members = list(METHODS[interface])
        member = self.rng.choice(members * 2 + ["CreateTunnel"] * 12 * (interface == MANAGER))
        signature = METHODS[interface][member]
        body = [self._argument(one) for one in rawbus.split(signature)]
        path = TUNNEL_PATH if interface == TUNNEL else self.rng.choice([ROOT, ROOT, TUNNEL_PATH])
        if interface == PROPERTIES and self.rng.random() < 0.7:
            own = MANAGER if path == ROOT else TUNNEL
            body[:2] = [own, self.rng.choice(["State", "Version", "Peers", "Name"])][: len(body)]
        raw = self._call(path, interface, member, signature, body)
        if "h" in signature and self.rng.random() < 0.7:
            raw.body = list(range(signature.count("h"))) + body[signature.count("h") :]
            first = self._fds.configs if member == "Reconfigure" else self._fds.namespaces
            raw.fds = [self.rng.choice(first), self.rng.choice(self._fds.configs), *raw.fds[2:3]]
        return raw

    def _argument(self, signature: str) -> Any:
        return self._options() if signature == "a{sv}" else self._values.of(signature)

    def _options(self) -> dict[str, Any]:
        rng = self.rng
        options = {}
        for name in rng.sample(list(OPTIONS), rng.choice([0, 0, 0, 1, 1, 2, 4])):
            kind = OPTIONS[name] if rng.random() < 0.85 else self._values.signature()
            options[name] = (kind, self._values.of(kind))
        if rng.random() < 0.05:
            options[self._values.string()] = ("v", self._values.of("v"))
        # What waits, waits for the answers to all of a batch.
        options["timeout_usec"] = ("t", rng.choice([1, 300_000, 300_000]))
        return options

    def _wrong_arguments(self) -> Raw:
        interface = self.rng.choice(list(METHODS))
        member = self.rng.choice(list(METHODS[interface]))
        path = self.rng.choice([ROOT, TUNNEL_PATH])
        return self._call(path, interface, member, *self._body())

    def _anything(self) -> Raw:
        rng = self.rng
        path = rng.choice(
            [ROOT, TUNNEL_PATH, "/", "/org", f"{ROOT}/tunnel", "/a/b", "/" + "x" * 400]
        )
        interface = rng.choice([None, MANAGER, TUNNEL, "a.b", "org.freedesktop.DBus", *METHODS])
        member = rng.choice(["Ping", "Get", "Close", "call", "__init__", "x", "refresh", "M" * 255])
        return self._call(path, interface, member, *self._body())

    def _body(self) -> tuple[str, list[Any]]:
        kinds = [self._values.signature() for _ in range(self.rng.choice([0, 1, 1, 2, 4]))]
        return "".join(kinds), [self._values.of(kind) for kind in kinds]

    def _large(self) -> Raw:
        signature, value = self.rng.choice(
            [
                ("ay", bytes(4_000_000)),
                ("s", "x" * 2_000_000),
                ("as", ["ab"] * 50_000),
                ("av", [("y", 1)] * 3_500),
                ("a{sv}", {str(n): ("u", n) for n in range(900)}),
                ("(ssa{sv})", ("/a", "/b" * 20_000, {})),
            ]
        )
        raw = self._call(ROOT, MANAGER, "CreateTunnel", signature, [value])
        if self.rng.random() < 0.3:
            raw.fields[0] = (rawbus.PATH, "o", "/" + "y" * 40_000)
        return raw

    def _no_call(self) -> Raw:
        """Signals at us, replies to what was never asked, and types that do not exist yet."""
        rng = self.rng
        raw = self._call(TUNNEL_PATH, TUNNEL, "StateChanged", *self._body())
        raw.type = rng.choice([rawbus.METHOD_RETURN, rawbus.ERROR, rawbus.SIGNAL, 5, 77, 255])
        raw.fields.append((rawbus.REPLY_SERIAL, "u", rng.choice([1, 2, 3, 10, 2**32 - 1])))
        raw.fields.append((rawbus.ERROR_NAME, "s", "org.example.Error"))
        if rng.random() < 0.3:
            raw.fields[1:3] = [
                (rawbus.INTERFACE, "s", "org.freedesktop.DBus"),
                (rawbus.MEMBER, "s", rng.choice(["NameOwnerChanged", "NameLost"])),
            ]
            raw.signature, raw.body = rng.choice([("s", [NAME]), ("sss", [":1.0", ":1.0", ""])])
        return raw

    def _call(
        self, path: str, interface: str | None, member: str, signature: str, body: list[Any]
    ) -> Raw:
        rng = self.rng
        fields: list[tuple[int, str, Any]] = [(rawbus.PATH, "o", path)]
        if interface:
            fields.append((rawbus.INTERFACE, "s", interface))
        fields.append((rawbus.MEMBER, "s", member))
        # dbus-daemon hangs up at more than 16; mostly there are as many as are needed.
        number = rng.choices([0, 2, 3, rng.randint(4, 16), 20], [20, 45, 30, 4, 0.2])[0]
        fds = rng.choices([*self._fds.namespaces, *self._fds.configs, *self._fds.others], k=number)
        return Raw(rawbus.METHOD_CALL, 0, fields, signature, body, fds)

    def _broken(self, data: bytes) -> bytes:
        """A few bytes of it are others. What may be left to come of it then comes not."""
        broken = bytearray(data[:4096])
        for _ in range(self.rng.randint(1, 4)):
            broken[self.rng.randrange(min(len(broken), 64))] = self.rng.randrange(256)
        self._client.connection.sock.sendall(bytes(broken))
        raise ConnectionResetError


@contextlib.contextmanager
def descriptors(namespace: MakeNamespace, stage: Stage, directory: Path) -> Iterator[Descriptors]:
    """Of every kind; those of pipes and sockets end at once, as a batch waits for its answers."""
    secrets = Secrets()
    with contextlib.ExitStack() as stack:

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def memory(content: bytes) -> int:
            fd = keep(os.memfd_create("config"))
            os.write(fd, content)
            return fd

        (directory / "file").write_text(secrets.conf())
        reader, writer = os.pipe()
        os.close(writer)
        left, right = socket.socketpair()
        right.close()
        stack.callback(left.close)
        unlinked = os.open(directory, os.O_TMPFILE | os.O_RDWR)
        nonsense = secrets.conf("Address = nonsense").encode()
        yield Descriptors(
            namespaces=[keep(namespace().open()) for _ in range(3)],
            configs=[
                *(memory(secrets.conf().encode()) for _ in range(3)),
                *(memory(content) for content in (b"", bytes(2_000_000), nonsense)),
                keep(os.open(directory / "file", os.O_RDONLY)),
                keep(reader),
            ],
            others=[
                left.fileno(),
                keep(unlinked),
                keep(os.open(directory / "file", os.O_PATH)),
                keep(os.open(directory, os.O_RDONLY)),
                keep(os.open("/dev/null", os.O_RDWR)),
                keep(os.open("/dev/zero", os.O_RDONLY)),
                keep(os.open("/proc/self/ns/net", os.O_RDONLY)),
                keep(os.open("/proc/self/ns/user", os.O_RDONLY)),
                keep(os.open(stage.roots_netns, os.O_RDONLY)),
                keep(os.pidfd_open(os.getpid())),
                keep(os.eventfd(0)),
            ],
        )
