"""`connect`: one connection through a tunnel, as standard input and output or as a descriptor."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from argparse import Namespace as Arguments

from wg4netnsd import names
from wg4netnsd.ctl.client import Client
from wg4netnsd.ctl.failure import FAILED, TIMEOUT, Failure, of_kernel

CONNECT_TIME = 30.0
"""Seconds, unless --timeout says otherwise; a host with several addresses shares them."""

PIECE = 1 << 16  # bytes


def run(arguments: Arguments) -> int:
    """Connect; then relay until the far end closes, or pass the descriptor on."""
    if arguments.pass_fd and not stat.S_ISSOCK(os.fstat(1).st_mode):
        text = "standard output is no socket that takes a descriptor"
        raise Failure(text, "--pass-fd is for ssh's option ProxyUseFdpass")
    with Client() as client:
        path = client.find_tunnel(arguments.name)
        (addresses,) = client.call(
            path, names.TUNNEL, "Resolve", "si", arguments.host, socket.AF_UNSPEC, start=False
        )
        connection = _connect(client, path, addresses, arguments)
    with connection:
        if arguments.pass_fd:
            with socket.socket(fileno=os.dup(1)) as passing:
                socket.send_fds(passing, [b"\0"], [connection.fileno()])
        else:
            _relay(connection, f"{arguments.host}:{arguments.port}")
    return 0


def _connect(
    client: Client, path: str, addresses: list[str], arguments: Arguments
) -> socket.socket:
    """Connect to the first address that answers. Raises Failure with the last one's reason."""
    deadline = time.monotonic() + (arguments.timeout or CONNECT_TIME)
    problem = Failure(f"{arguments.host}: no address")
    for number, address in enumerate(addresses):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        method = (path, names.TUNNEL, "OpenSocket", "iii", family, socket.SOCK_STREAM, 0)
        (received,) = client.call(*method, start=False)
        connection = socket.socket(fileno=received.to_raw_fd())
        os.set_inheritable(connection.fileno(), False)
        left = max(deadline - time.monotonic(), 0.001)
        connection.settimeout(left / (len(addresses) - number))
        where = f"{arguments.host} ({address}) port {arguments.port}"
        try:
            connection.connect((address, arguments.port))
        except TimeoutError:
            problem = Failure(f"{where}: no answer", "", TIMEOUT)
        except OSError as error:
            problem = Failure(f"{where}: {error.strerror}", "", FAILED)
        else:
            connection.settimeout(None)
            return connection
        connection.close()
    raise problem


def _relay(connection: socket.socket, where: str) -> None:
    """Copy standard input to the connection, and the connection to standard output, to its end."""
    threading.Thread(target=_send_input, args=[connection], daemon=True).start()
    while True:
        try:
            data = connection.recv(PIECE)
        except OSError as error:
            error.filename = where
            raise of_kernel(error) from None
        if not data:
            return
        while data:
            data = data[os.write(1, data) :]


def _send_input(connection: socket.socket) -> None:
    try:
        while data := os.read(0, PIECE):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other direction has ended, too, and says why
