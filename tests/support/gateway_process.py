"""A gateway as the daemon starts it, driven through its control socket.

What serves its sockets here runs inside as the tunnel's own socket server does.
"""

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from support.namespaces import Namespace
from support.processes import wait_for
from wg4netnsd.gateway import protocol
from wg4netnsd.gateway.protocol import (
    AddForward,
    AllCounters,
    Answer,
    Counters,
    ForwardAdded,
    GetCounters,
    Request,
    SetSockets,
)

SERVE = """
import socket, sys
from wg4netnsd.agent.sockets import serve
serve(socket.socket(fileno=int(sys.argv[1])), -1)
"""


class Sockets:
    """A process inside that opens sockets there for whoever has `requests`."""

    def __init__(self, inside: Namespace) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = inside.popen(
                *(sys.executable, "-I", "-c", SERVE, str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self.requests.close()
        os.close(self.pidfd)
        self.process.wait(10)


class GatewayProcess:
    """A gateway, with its sockets served from `inside`."""

    def __init__(self, inside: Namespace, max_fds: int = 0) -> None:
        self._inside = inside
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(30)

        def limit() -> None:
            if max_fds:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max_fds, max_fds))

        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "wg4netnsd.gateway"],
                env={protocol.CONTROL_FD: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=limit,
            )
        self.sockets: list[Sockets] = []
        self.serve_sockets()

    @property
    def pid(self) -> int:
        return self.process.pid

    def serve_sockets(self) -> Sockets:
        """Have it get its sockets from a new process."""
        served = Sockets(self._inside)
        self.sockets.append(served)
        self.ask(SetSockets(self._inside.id), served.requests.fileno(), served.pidfd)
        return served

    def ask(self, request: Request, *fds: int) -> Answer:
        """The answer; fds that come with it are closed, unless it is received by `ask_fds`."""
        answer, received = self.ask_fds(request, *fds)
        protocol.close_all(received)
        return answer

    def ask_fds(self, request: Request, *fds: int) -> tuple[Answer, list[int]]:
        protocol.send(self.control, request, list(fds))
        text, received = protocol.receive(self.control)
        assert text, f"the gateway has ended: {self.end()}"
        return protocol.decode_answer(text), received

    def add(self, spec: AddForward, *listeners: socket.socket) -> list[str]:
        """The addresses that it listens on."""
        added = self.ask(spec, *(each.fileno() for each in listeners))
        assert isinstance(added, ForwardAdded), added
        return added.listening

    def proxy(self, **options: Any) -> int:
        """Have it serve a proxy on the host's loopback; return the port."""
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
            spec = AddForward(f"proxy {listener.fileno()}", "proxy")._replace(**options)
            self.add(spec, listener)
            return int(listener.getsockname()[1])

    def counters(self) -> Counters:
        """Those of its only forward."""
        answer = self.ask(GetCounters())
        assert isinstance(answer, AllCounters)
        (counters,) = answer.forwards.values()
        return counters

    def settled(self) -> Counters:
        """Its counters once no connection is open."""
        wait_for(lambda: not self.counters().open, "its connections have ended")
        return self.counters()

    def fds(self) -> int:
        """How many descriptors it has. It is not dumpable, so its own view is all there is."""
        return int(Path(f"/proc/{self.pid}/status").read_text().split("FDSize:")[1].split()[0])

    def end(self) -> str:
        """Close the control socket; return what it has logged."""
        self.control.close()
        _, logged = self.process.communicate(timeout=10)
        for served in self.sockets:
            served.close()
        self.sockets.clear()
        return logged.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        logged = self.end()
        assert self.process.returncode == 0, logged
        assert "Traceback" not in logged, logged


def socks_5(port: int, host: str, far_port: int) -> socket.socket:
    """A connection through the proxy; the host by name or address."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        reply = ask_socks_5(connection, host, far_port)
        assert reply == 0, f"SOCKS reply {reply}"
    except BaseException:
        connection.close()
        raise
    return connection


def ask_socks_5(connection: socket.socket, host: str, far_port: int, command: int = 1) -> int:
    """The code of the reply."""
    connection.sendall(b"\5\1\0")
    assert exactly(connection, 2) == b"\5\0"
    name = host.encode()
    request = bytes([5, command, 0, 3, len(name)]) + name + far_port.to_bytes(2, "big")
    connection.sendall(request)
    head = exactly(connection, 4)
    exactly(connection, 6 if head[3] == 1 else 18)
    return head[1]


def exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        assert more, f"an end after {data!r}"
        data += more
    return data


@contextlib.contextmanager
def echo_inside(inside: Namespace, address: str, udp: bool = False) -> Iterator[int]:
    """A server inside that sends back what it gets; yields the port."""
    kind = "DGRAM" if udp else "STREAM"
    family = "INET6" if ":" in address else "INET"
    program = f"""
import socket, threading
served = socket.socket(socket.AF_{family}, socket.SOCK_{kind})
served.bind(({address!r}, 0))
print(served.getsockname()[1], flush=True)
def echo(one):
    while data := one.recv(65536):
        one.sendall(data)
    one.close()
if {udp}:
    while True:
        data, sender = served.recvfrom(65536)
        served.sendto(data, sender)
served.listen()
while True:
    threading.Thread(target=echo, args=[served.accept()[0]], daemon=True).start()
"""
    with inside.popen("/usr/bin/python3", "-c", program, stdout=subprocess.PIPE) as server:
        assert server.stdout
        yield int(server.stdout.readline())
        server.kill()
