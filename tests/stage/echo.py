"""Echo on TCP port 7, discard on 9 and chargen on 19, over IPv4 and IPv6; the far end runs it.

Benchmarks want to know what has arrived: discard answers the end of a stream with its length, as 8
bytes.
"""

import contextlib
import socket
import socketserver
import threading

PIECE = 1 << 18


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class Discard(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        buffer = bytearray(PIECE)
        length = 0
        with contextlib.suppress(ConnectionError):
            while received := self.request.recv_into(buffer):
                length += received
            self.request.sendall(length.to_bytes(8, "big"))


class Chargen(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        piece = bytes(PIECE)
        with contextlib.suppress(ConnectionError):
            while True:
                self.request.sendall(piece)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


for port, handler in ((9, Discard), (19, Chargen)):
    threading.Thread(target=Server(("::", port), handler).serve_forever).start()
Server(("::", 7), Echo).serve_forever()
