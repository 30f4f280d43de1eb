"""A way to the bus for one client, on which a call can be held up, and then its reply."""

import select
import socket
import threading
from pathlib import Path
from typing import Self

from jeepney import HeaderFields, Parser

_LAST_WORDS = b"AGREE_UNIX_FD\r\n"  # of the bus, before messages begin


class Relay:
    """For a client that sends one message at a time, and no descriptors.

        client ──► hold(method)  ┃  pass_call() ──► bus
        client ◄── pass_reply()  ┃  ◄────────────── bus

    The bus keeps the order, so what it tells meanwhile comes before the reply or behind it.
    """

    def __init__(self, bus: str, directory: Path) -> None:
        """`bus`: its address, a path's. `directory` gets our socket."""
        self.address = f"unix:path={directory}/relay"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{directory}/relay")
        self._listener.listen()
        self._bus = socket.socket(socket.AF_UNIX)
        self._bus.connect(bus.removeprefix("unix:path="))
        self._parser: Parser | None = None
        self._held = b""
        self._thread = threading.Thread(target=self._pass_all)

    def hold(self, method: str) -> None:
        """Wait until the client calls it; the bus does not hear of that yet."""
        with self._listener:
            self._client = self._listener.accept()[0]
        while method.encode() not in (call := self._pass()):
            self._bus.sendall(call)
        self._held = call

    def pass_call(self) -> None:
        """Wait until the daemon has replied; the client does not hear of that yet."""
        serial = int.from_bytes(self._held[8:12], "little")
        self._bus.sendall(self._held)
        self._held = b""
        while serial not in self._hear():
            pass

    def pass_reply(self) -> None:
        """And all else, from now on."""
        self._client.sendall(self._held)
        self._thread.start()

    def _pass(self) -> bytes:
        """Let the bus speak until the client does; that is not passed on."""
        while True:
            ready, _, _ = select.select([self._client, self._bus], [], [])
            if self._client in ready:
                data = self._client.recv(65536)
                assert data, "the client has gone"
                return data
            self._hear()
            self._client.sendall(self._held)
            self._held = b""

    def _hear(self) -> set[int]:
        """Hold what the bus says; the serial numbers of the calls that are replied to by that."""
        data = self._bus.recv(65536)
        assert data, "the bus has gone"
        self._held += data
        if self._parser is None:
            self._parser = Parser() if self._held.endswith(_LAST_WORDS) else None
            return set()
        heard = self._parser.feed(data)
        return {message.header.fields.get(HeaderFields.reply_serial, 0) for message in heard}

    def _pass_all(self) -> None:
        others = {self._client: self._bus, self._bus: self._client}
        while True:
            for one in select.select(list(others), [], [])[0]:
                if not (data := one.recv(65536)):
                    return
                others[one].sendall(data)

    def close(self) -> None:
        self._bus.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()
        self._bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
