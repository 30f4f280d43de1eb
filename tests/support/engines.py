"""Engines without a daemon, and what only root can see of any."""

import os
import socket
import subprocess
from pathlib import Path
from typing import IO

from support import stage
from support.processes import is_alive
from wg4netnsd.kernel import udp


def waiting_engine(
    *command: str | Path, output: int = subprocess.PIPE, **environment: str
) -> tuple[subprocess.Popen[bytes], socket.socket, IO[bytes]]:
    """An engine as the daemon starts it, the socket over which it takes its descriptors, and the
    pipe with its events."""
    ours, engines = socket.socketpair()
    read_end, write_end = os.pipe()
    handed = {"WG_HANDOVER_FD": str(engines.fileno()), "WG_EVENT_FD": str(write_end)}
    with engines:
        process = subprocess.Popen(
            command,
            env=handed | environment,
            pass_fds=(engines.fileno(), write_end),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    os.close(write_end)
    return process, ours, open(read_end, "rb")


def serve_uapi(handover: socket.socket, path: Path) -> None:
    """Give a waiting engine UDP sockets, and have it listen there."""
    sockets = udp.open_sockets(0)
    socket.send_fds(handover, [b"\0"], [each.fileno() for each in sockets])
    for each in sockets:
        each.close()
    with socket.socket(socket.AF_UNIX) as uapi:
        uapi.bind(str(path))
        uapi.listen()
        socket.send_fds(handover, [b"\0"], [uapi.fileno()])


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(path))
    return client


def ask(client: socket.socket, request: str) -> str:
    client.sendall(request.encode())
    answer = b""
    while not answer.endswith(b"\n\n"):
        received = client.recv(4096)
        assert received, answer
        answer += received
    return answer.decode()


def descriptors(pid: int) -> dict[int, str]:
    """What an engine's lead to; none if it has ended."""
    try:
        return _root().engine_descriptors(pid)
    except stage.ControlError:
        if is_alive(pid):
            raise
        return {}


def environment(pid: int) -> dict[str, str]:
    return dict(each.split("=", 1) for each in _root().engine_environment(pid))


def _root() -> stage.Control:
    found = stage.read()
    assert found, "needs the stage: run it by scripts/test"
    return stage.Control(found.control)
