"""Speaks the handover protocol of wireguard-go.patch and takes a TUN, but is no wireguard-go.

MODE, which the test sets, tells how it misbehaves.
"""

import contextlib
import os
import socket
import struct
import threading

MODE = ""

handover = socket.socket(fileno=int(os.environ["WG_HANDOVER_FD"]))
events = int(os.environ["WG_EVENT_FD"])
attached = threading.Event()

STATUS = b"own_public_key=" + b"5a" * 32 + b"\nlisten_port=1234\nerrno=0\n\n"
ANSWERS = {  # to any request
    "rubbish": bytes(range(128, 256)) * 10 + b"\n\n",
    "empty": b"\n\n",
    "errno-is-no-number": b"errno=none\n\n",
    "errno-is-unknown": b"errno=-4711\n\n",
    "errno-is-huge": b"errno=-" + b"9" * 40 + b"\n\n",
    "refuses": b"errno=-22\n\n",
    "breaks-off": b"listen_port=12",
}
STATUSES = {  # to a `get`
    "port-out-of-range": STATUS.replace(b"1234", b"70000"),
    "port-is-negative": STATUS.replace(b"1234", b"-1"),
    "key-is-none": STATUS.replace(b"5a" * 32, b"none"),
    "counter-is-huge": b"public_key=" + b"5a" * 32 + b"\nrx_bytes=" + b"9" * 40 + b"\n" + STATUS,
    "control-characters": b"public_key=" + b"5a" * 32 + b"\nendpoint=\0\n" + STATUS,
}


def receive_fd() -> int:
    """Receive a message; return its first descriptor."""
    data, ancillary, *_ = handover.recvmsg(1, socket.CMSG_SPACE(2 * 4))
    if not data:
        os._exit(0)
    return struct.unpack_from("i", ancillary[0][2])[0]


def serve(listener: socket.socket) -> None:
    while True:
        threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()


def talk(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the daemon has had enough
        answer_each(connection)


def answer_each(connection: socket.socket) -> None:
    request = b""
    while data := connection.recv(65536):
        request += data
        while b"\n\n" in request:
            first, _, request = request.partition(b"\n\n")
            answer(connection, first)
            if MODE == "breaks-off":
                connection.close()
                return


def answer(connection: socket.socket, request: bytes) -> None:
    if MODE == "silence":
        return
    if MODE == "half-an-answer":
        connection.sendall(STATUS[:-1])
        return
    while MODE == "endless-answer":
        connection.sendall(b"rx_bytes=1\n" * 1000)
    good = STATUSES.get(MODE, STATUS) if request == b"get=1" else b"errno=0\n\n"
    connection.sendall(ANSWERS.get(MODE, good))


def main() -> None:
    if MODE == "ends-at-once":
        print("ERROR: a bad day for", "Zm9yIGFsbCB0aG9zZSB3aG8gc2VhcmNoIGZvciBrZXlz", flush=True)
        return
    os.write(events, b"timers 180000 90000\n")
    receive_fd()  # its UDP sockets
    listener = socket.socket(fileno=receive_fd())
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    receive_fd()
    if MODE == "ends-with-its-tun":
        return
    if MODE != "does-not-take-its-tun":
        handover.send(b"\0")
    if MODE == "rubbish-events":
        os.write(events, os.urandom(60000) + b"\ncompleted zz\nendpoint\n")
    while MODE == "flood-of-events":
        os.write(events, b"initiated " + b"5a" * 32 + b"\n")
    while MODE == "flood-of-rubbish-events":
        os.write(events, b"what\n" * 100)
    while MODE == "flood-of-words":
        os.write(1, b"la\n" * 100)
    handover.recv(1)


main()
