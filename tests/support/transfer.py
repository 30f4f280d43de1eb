"""TCP streams: to an echo server, which check every byte, and iperf3's."""

import json
import subprocess
import threading
from typing import Any, Self

from support.namespaces import Namespace
from support.processes import wait_for

# Sends random bytes to an echo server and compares the hashes of both directions.
TRANSFER = """
import hashlib, os, socket, sys, threading
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sent, received = os.urandom(size), bytearray()
with socket.create_connection((address, port), timeout=30) as connection:
    def send():
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    while data := connection.recv(65536):
        received += data
    sender.join()
print(hashlib.sha256(sent).hexdigest(), hashlib.sha256(received).hexdigest())
"""


def iperf3(inside: Namespace, server: str, *options: str) -> dict[str, Any]:
    """The report of one transfer. The server takes one at a time, and a moment between two."""
    command = ["iperf3", "--json", f"--client={server}", *options]

    def report() -> dict[str, Any]:
        run = inside.run(*command)
        found = json.loads(run.stdout) if run.returncode == 0 else {}
        return found if "sum_received" in found.get("end", {}) else {}

    return wait_for(report, f"{command}")


# Sends blocks, each made of its number, until stdin ends; what comes back has to be the same.
# Prints how many bytes have come back whole, now and then, and "whole" at the end.
_PROGRAM = """
import hashlib, select, socket, sys, threading
def block(number):
    return hashlib.sha256(str(number).encode()).digest() * 128
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
finished = threading.Event()
sent = 0
def send():
    global sent
    while not finished.is_set():
        connection.sendall(block(sent))
        sent += 1
    connection.shutdown(socket.SHUT_WR)
def wait():
    sys.stdin.read()
    finished.set()
sender = threading.Thread(target=send)
sender.start()
threading.Thread(target=wait, daemon=True).start()
received, pending = 0, b""
while data := connection.recv(65536):
    pending += data
    while len(pending) >= 4096:
        assert pending[:4096] == block(received), received
        received, pending = received + 1, pending[4096:]
        if received % 64 == 0:
            print(received, flush=True)
sender.join()
assert not pending and received == sent, (received, sent)
print("whole", flush=True)
"""


class Transfer:
    """The stream, from inside a namespace."""

    def __init__(self, inside: Namespace, address: str, port: int) -> None:
        self.process = inside.popen(
            "python3",
            "-c",
            _PROGRAM,
            address,
            str(port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        self._last_line = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._last_line = line.strip()

    def wait_for_progress(self) -> None:
        """Return when more has come back than had at the call."""
        before = self._last_line
        wait_for(lambda: self._last_line != before, "the stream goes on", 30)

    def finish(self) -> None:
        """End it; every byte has to have come back."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self._reader.join()
        assert self._last_line == "whole"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()
