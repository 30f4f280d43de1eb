"""Version 2 of HAProxy's PROXY protocol: tell a server of the host who its far client is.

https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt, section 2.2
"""

from __future__ import annotations

import socket
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
VERSION_2_PROXY: Final = 0x21
TCP_OVER_IPV4, TCP_OVER_IPV6 = 0x11, 0x21


def encode_header(client: tuple[str, int], server: tuple[str, int]) -> bytes:
    """Encode the header of a TCP connection; both addresses are of one family, without a zone."""
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    kind = TCP_OVER_IPV6 if family == socket.AF_INET6 else TCP_OVER_IPV4
    body = b"".join(socket.inet_pton(family, ip.partition("%")[0]) for ip, _ in (client, server))
    body += b"".join(port.to_bytes(2, "big") for _, port in (client, server))
    return SIGNATURE + bytes((VERSION_2_PROXY, kind)) + len(body).to_bytes(2, "big") + body
