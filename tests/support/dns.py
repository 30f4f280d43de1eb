"""A DNS server: dns.py ADDRESS ANSWER

To each question for an A record it answers ANSWER, to all others that there is none. It prints
what it is asked, a name a line, after a line that it listens.
"""

import socket
import struct
import sys

A, IN = 1, 1
RESPONSE = 0x8180  # and recursion desired, recursion available


def answer(query: bytes, address: bytes) -> tuple[str, bytes]:
    """The name in question, and what to say."""
    labels, end = [], 12
    while size := query[end]:
        labels.append(query[end + 1 : end + 1 + size].decode())
        end += 1 + size
    (kind,) = struct.unpack_from("!H", query, end + 1)
    records = b"\xc0\x0c" + struct.pack("!HHIH", A, IN, 60, 4) + address if kind == A else b""
    header = query[:2] + struct.pack("!5H", RESPONSE, 1, bool(records), 0, 0)
    return ".".join(labels), header + query[12 : end + 5] + records


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((sys.argv[1], 53))
        print("listens", flush=True)
        while True:
            query, client = server.recvfrom(4096)
            name, said = answer(query, socket.inet_aton(sys.argv[2]))
            print(name, flush=True)
            server.sendto(said, client)


if __name__ == "__main__":
    main()
