"""Do what CMU's wireguard4netns does for one tunnel; predecessor.py runs this program.

    oneshot.py ENGINE NS_PID INTERFACE CONF     in the directory where the UAPI socket is to be

It follows `tundev.py` and `wireguard_daemon.py` of release 0.1.6,
https://github.com/cmusatyalab/wireguard4netns, with three differences. It sets IFF_NO_PI, because
upstream's wireguard-go no longer reads packet information. A few lines here read the configuration,
which is in wg(8)'s format; the original uses two libraries (wireguard-tools, attrs), whose import
takes longer. And it prints the engine's pid, so that the benchmark can end it.
"""

import base64
import ctypes
import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
import time
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

from pyroute2 import NDB

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000

UAPI_KEYS = {
    "PrivateKey": "private_key",
    "ListenPort": "listen_port",
    "PublicKey": "public_key",
    "PresharedKey": "preshared_key",
    "Endpoint": "endpoint",
    "AllowedIPs": "allowed_ip",
}

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    engine, ns_pid, interface, conf = sys.argv[1:]
    tun = create_tun_in_netns(int(ns_pid), interface)
    process = subprocess.Popen(
        [engine, interface],
        env={"WG_PROCESS_FOREGROUND": "1", "WG_TUN_FD": str(tun)},
        pass_fds=[tun],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    uapi = Path(f"{interface}.sock")
    while not uapi.exists():
        time.sleep(0.1)
    configure(uapi, Path(conf).read_text())
    print(process.pid)


def create_tun_in_netns(ns_pid: int, interface: str) -> int:
    reader, writer = Pipe()
    child = Process(target=create_tun, args=(ns_pid, interface, writer))
    child.start()
    tun = recv_handle(reader)
    child.join()
    return tun


def create_tun(ns_pid: int, interface: str, writer: Connection) -> None:
    setns(ns_pid, "user")
    setns(ns_pid, "net")
    tun = os.open("/dev/net/tun", os.O_RDWR)
    ifreq = struct.pack("16sH22x", interface.encode(), IFF_TUN | IFF_NO_PI)
    fcntl.ioctl(tun, TUNSETIFF, ifreq)
    send_handle(writer, tun, None)
    with NDB() as ndb:
        ndb.interfaces[interface].set("mtu", 1420).commit()


def setns(pid: int, kind: str) -> None:
    with Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
        if libc.setns(namespace.fileno(), 0) == -1:
            raise OSError(ctypes.get_errno(), f"setns: {kind}")


def configure(uapi: Path, conf: str) -> None:
    """Configure the engine. Raises ValueError with its errno if it refuses."""
    lines = ["set=1"]
    for name, value in re.findall(r"^(\w+) *= *(.+)$", conf, re.M):
        for part in value.split(","):
            text = part.strip()
            if name.endswith("Key"):
                text = base64.b64decode(text).hex()
            lines.append(f"{UAPI_KEYS[name]}={text}")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(uapi))
        connection.sendall(("\n".join(lines) + "\n\n").encode())
        answer = connection.makefile().readline()
    if answer != "errno=0\n":
        raise ValueError(answer.strip())


main()
