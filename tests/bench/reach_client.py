"""A program that uses a tunnel, by a SOCKS 5 proxy or from inside: bench/reach.py runs it.

    reach_client.py PROXY_PORT ADDRESS transfer up|down STREAMS SECONDS
    reach_client.py PROXY_PORT ADDRESS connect CLIENTS SECONDS
    reach_client.py PROXY_PORT ADDRESS idle COUNT          until its stdin ends

PROXY_PORT is of loopback, 0 for none. It prints JSON. It imports nothing of ours.
"""

import json
import resource
import socket
import sys
import threading
import time

PIECE = 1 << 18
ECHO, DISCARD, CHARGEN = 7, 9, 19


def connect(proxy: int, address: str, port: int) -> socket.socket:
    if not proxy:
        return socket.create_connection((address, port), timeout=60)
    made = socket.create_connection(("127.0.0.1", proxy), timeout=60)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sendall(b"\5\1\0")
    assert exactly(made, 2) == b"\5\0"
    made.sendall(b"\5\1\0\1" + socket.inet_aton(address) + port.to_bytes(2, "big"))
    reply = exactly(made, 10)
    assert reply[1] == 0, reply
    return made


def exactly(made: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = made.recv(length - len(data))
        assert more, "an early end"
        data += more
    return data


def up(made: socket.socket, seconds: float) -> int:
    """Return the bytes that the far end has received."""
    piece = bytes(PIECE)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        made.sendall(piece)
    made.shutdown(socket.SHUT_WR)
    return int.from_bytes(exactly(made, 8), "big")


def down(made: socket.socket, seconds: float) -> int:
    buffer = bytearray(PIECE)
    end = time.monotonic() + seconds
    received = 0
    while time.monotonic() < end:
        received += made.recv_into(buffer)
    return received


def transfer(proxy: int, address: str, direction: str, streams: str, seconds: str) -> None:
    port, run = (DISCARD, up) if direction == "up" else (CHARGEN, down)
    made = [connect(proxy, address, port) for _ in range(int(streams))]
    received: list[int] = []
    threads = [
        threading.Thread(target=lambda one: received.append(run(one, float(seconds))), args=[one])
        for one in made
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    for one in made:
        one.close()
    assert len(received) == len(made), "a stream has failed"
    print(json.dumps({"bytes": sum(received), "seconds": took}))


def connections(proxy: int, address: str, clients: str, seconds: str) -> None:
    """Connect, send a byte, get it back, close; over and over."""
    times: list[float] = []
    end = time.monotonic() + float(seconds)

    def client() -> None:
        while time.monotonic() < end:
            start = time.monotonic()
            with connect(proxy, address, ECHO) as made:
                made.sendall(b"x")
                exactly(made, 1)
                times.append(time.monotonic() - start)

    threads = [threading.Thread(target=client) for _ in range(int(clients))]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"times": times, "seconds": time.monotonic() - start}), flush=True)


def idle(proxy: int, address: str, count: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    made = [connect(proxy, address, ECHO) for _ in range(int(count))]
    for one in made:
        one.sendall(b"x")
        exactly(one, 1)
    print(json.dumps({"connections": len(made)}), flush=True)
    sys.stdin.read()


def main() -> None:
    proxy, address, what, *arguments = sys.argv[1:]
    what_to_do = {"transfer": transfer, "connect": connections, "idle": idle}[what]
    what_to_do(int(proxy), address, *arguments)


if __name__ == "__main__":
    main()
