"""Make the changes that running tests need from root: control.py USER STOCK

The user's suite sends requests over a socket, one line per connection. The answer, `ok` or what
went wrong, comes once the effect is there. These are all the requests:

  far stop | far start            the engine of `far-moving`, its interface with it
  far move ADDRESS                its uplink's IPv4 address, in place of the present one
  host address add|delete ADDRESS/PREFIX        on the host's side of that link
  host default add|delete         a default route over that link
  host link up|down               the host's side
  path MTU                        of the routes over that link, at both ends; 0: the link's again
  router MTU open|filtered        a second way to `far-moving`, by a router whose far link has this
                                  MTU and that sends ICMP, or none; its near link has 1500
  far engine stock|ours           the program of that engine from its next start on
  host-name NAME.test ADDRESS…    all addresses of the name; none removes it
  engine descriptors PID          the files they refer to, as JSON after the `ok`
  engine environment PID          also as JSON
  roots sockets                   two UDP sockets in the namespace `roots`, as descriptors
  stock endpoint v4|v6            the stock client's peer: the moving far end, until `reset`
  stock mtu 1420|8920             the MTU of the stock client, which benchmarks use
  capture start MARKER | capture stop           tests/stage/capture.py, on the host; MARKER in hex
  reset                           everything as it was when this program started

An engine is a wireguard-go of that user's. The user cannot read its files in /proc, because it is
not dumpable.

Requests are parsed here and written anew, never passed on as text. STOCK is the program of the far
end's engine; tests/stage/world exports `far_engine`, which starts it.
"""

import contextlib
import json
import os
import pwd
import re
import select
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SOCKET = "/run/wg4netnsd-control"
OUR_ENGINE = "/run/ours/wireguard-go"
HOSTS = Path("/run/hosts")
NETNS = LINK = "far-moving"
FAR_ADDRESS = "192.0.3.2"
LINK_NETWORKS = (ip_network("192.0.3.0/24"), ip_network("2001:db8:3::/64"))
NETWORKS = (*LINK_NETWORKS, ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))
MOST_BYTES = 1024
CAPTURE = Path(__file__).with_name("capture.py")
CAPTURED = "/run/wg4netnsd-captured.json"


class Refused(Exception):
    """A refusal; the user reads its text."""


class Control:
    def __init__(self, user: int, stock: str) -> None:
        self.user = user
        self.stock = stock
        self.far_program = stock
        self.far_address = uplink_address()
        self.host_addresses = host_addresses()
        self.hosts = HOSTS.read_text()
        self.capture: subprocess.Popen[bytes] | None = None

    def obey(self, line: str) -> Any:
        """Carry out a request; return what the answer contains, if anything."""
        if not line.endswith("\n"):
            raise Refused("not a line, or too long")
        match line.split():
            case ["far", "stop"]:
                self.far_stop()
            case ["far", "start"]:
                self.far_start()
            case ["far", "move", address]:
                far_move(link_ipv4(address))
            case ["host", "address", "add" | "delete" as verb, address]:
                host_address(verb, link_address(address))
            case ["host", "default", "add" | "delete" as verb]:
                host_default(verb)
            case ["host", "link", "up"]:
                host_link_up()
            case ["host", "link", "down"]:
                ip("link", "set", LINK, "down")
            case ["path", mtu]:
                path(number(mtu))
            case ["router", mtu, "open" | "filtered" as icmp]:
                router(number(mtu), icmp)
            case ["far", "engine", "stock" | "ours" as program]:
                self.far_engine(program)
            case ["host-name", name, *addresses]:
                host_name(hostname(name), [stage_address(each) for each in addresses])
            case ["engine", "descriptors", pid]:
                with self.engine(pid) as proc:
                    return descriptors(proc)
            case ["engine", "environment", pid]:
                with self.engine(pid) as proc:
                    return read(proc, "environ").decode().split("\0")[:-1]
            case ["stock", "endpoint", "v4" | "v6" as family]:
                stock_endpoint({"v4": "192.0.3.2", "v6": "[2001:db8:3::2]"}[family])
            case ["stock", "mtu", "1420" | "8920" as mtu]:
                ip("link", "set", "stock0", "mtu", mtu)
            case ["capture", "start", marker]:
                self.capture_start(marker)
            case ["capture", "stop"]:
                self.capture_stop()
            case ["reset"]:
                self.reset()
            case _:
                raise Refused(f"no such request: {line.strip()!r}")
        return None

    def far_engines(self) -> list[int]:
        pids = run("ip", "netns", "pids", NETNS).split()
        ours = (self.stock, OUR_ENGINE)
        return [int(pid) for pid in pids if os.readlink(f"/proc/{pid}/exe") in ours]

    def far_stop(self) -> None:
        for pid in self.far_engines():
            engine = os.pidfd_open(pid)
            signal.pidfd_send_signal(engine, signal.SIGKILL)
            select.select([engine], [], [])  # then its sockets and its interface are gone too
            os.close(engine)

    def far_start(self) -> None:
        if not self.far_engines():
            # It keeps our stderr, so capturing that would wait for the engine's end.
            command = ["bash", "-c", "set -euo pipefail; far_engine far-moving"]
            subprocess.run(command, check=True, env=os.environ | {"stock": self.far_program})

    def far_engine(self, program: str) -> None:
        """Use this program instead of the one that runs."""
        self.far_program = self.stock if program == "stock" else OUR_ENGINE
        self.far_stop()
        self.far_start()

    @contextlib.contextmanager
    def engine(self, pid: str) -> Iterator[int]:
        """Open its directory in /proc, which stays this process's even if the pid is reused."""
        if not re.fullmatch(r"[1-9][0-9]{0,9}", pid):
            raise Refused(f"not a process: {pid!r}")
        proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.fstat(proc).st_uid != self.user or read(proc, "comm") != b"wireguard-go\n":
                raise Refused(f"not an engine: {pid}")
            yield proc
        finally:
            os.close(proc)

    def capture_start(self, marker: str) -> None:
        if self.capture or not re.fullmatch(r"([0-9a-f]{2}){8,64}", marker):
            raise Refused("there is a capture already" if self.capture else "no marker in hex")
        program = [sys.executable, "-I", str(CAPTURE), marker, CAPTURED]
        self.capture = subprocess.Popen(program, stdout=subprocess.PIPE)
        if self.capture.stdout.readline() != b"ready\n":
            self.capture_stop()

    def capture_stop(self) -> None:
        if not self.capture:
            raise Refused("there is no capture")
        capture, self.capture = self.capture, None
        capture.terminate()
        capture.communicate()
        if capture.returncode:
            raise Refused("the capture failed")

    def reset(self) -> None:
        if self.capture:
            self.capture_stop()
        write_hosts(self.hosts)
        host_link_up()
        for address in host_addresses() - self.host_addresses:
            host_address("delete", address)
        for address in self.host_addresses - host_addresses():
            host_address("add", address)
        if run("ip", "route", "show", *DEFAULT):
            host_default("delete")
        path(0)
        router_delete()
        if os.path.exists("/sys/class/net/stock0"):
            stock_endpoint("192.0.2.2")
        if self.far_program != self.stock:
            self.far_engine("stock")
        self.far_start()
        far_move(self.far_address)


# --- parsing requests ----------------------------------------------------------------------


def stage_address(text: str) -> IPv4Address | IPv6Address:
    address = parse(ip_address, text)
    if not any(address in network for network in NETWORKS):
        raise Refused(f"not an address of the stage: {text!r}")
    return address


def link_ipv4(text: str) -> str:
    address = parse(IPv4Address, text)
    if address not in LINK_NETWORKS[0].hosts() or f"{address}/24" in host_addresses():
        raise Refused(f"not an address for the far end: {text!r}")
    return f"{address}/24"


def link_address(text: str) -> str:
    interface = parse(ip_interface, text)
    network = interface.network
    if not any(
        network.version == each.version and network.subnet_of(each) for each in LINK_NETWORKS
    ):
        raise Refused(f"not an address of the link: {text!r}")
    return str(interface)


def parse(kind: Callable[[str], T], text: str) -> T:
    if "%" in text:  # ipaddress accepts any text as the zone after it
        raise Refused(f"not an address: {text!r}")
    try:
        return kind(text)
    except ValueError:
        raise Refused(f"not an address: {text!r}") from None


def number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise Refused(f"not a number: {text!r}")
    return int(text)


def hostname(text: str) -> str:
    if not re.fullmatch(r"[a-z-]+\.test", text):
        raise Refused(f"not a name: {text!r}")
    return text


# --- changes -------------------------------------------------------------------------------

ROUTER = "router"
DEFAULT = ("default", "via", FAR_ADDRESS, "dev", LINK, "metric", "4242")


def far_move(new: str) -> None:
    old = uplink_address()
    if new == old:
        return
    ip("-netns", NETNS, "address", "add", new, "dev", "uplink")
    ip("-netns", NETNS, "address", "delete", old, "dev", "uplink")
    # An engine sends from the address at which it last received, even if that is gone. A new mark
    # makes it forget that address (Device.BindSetMark).
    for mark in ("1", "0") if far_is_up() else ():
        run("ip", "netns", "exec", NETNS, "wg", "set", NETNS, "fwmark", mark)


def far_is_up() -> bool:
    return any(each["ifname"] == NETNS for each in shown("-netns", NETNS, "link", "show"))


def uplink_address() -> str:
    (address,) = addresses("-netns", NETNS, "-4", "address", "show", "dev", "uplink")
    return address


def host_addresses() -> set[str]:
    return addresses("address", "show", "dev", LINK)


def host_address(verb: str, address: str) -> None:
    nodad = ["nodad"] if verb == "add" and ":" in address else []  # usable at once
    ip("address", verb, address, "dev", LINK, *nodad)


def host_default(verb: str) -> None:
    ip("route", verb, *DEFAULT)


def host_link_up() -> None:
    ip("link", "set", LINK, "up")
    # The kernel notices the carrier a moment later; until then it drops packets.
    deadline = time.monotonic() + 5
    while Path(f"/sys/class/net/{LINK}/operstate").read_text() != "up\n":
        if time.monotonic() > deadline:
            raise Refused("the link does not come up")
        time.sleep(0.01)


def stock_endpoint(address: str) -> None:
    conf = run("wg", "showconf", "stock0")
    conf = re.sub(r"(?m)^Endpoint = .*", f"Endpoint = {address}:51820", conf)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(conf)
        file.flush()
        run("wg", "setconf", "stock0", file.name)  # the peer is a new one, without a session


def path(mtu: int) -> None:
    ways = (
        ((), LINK, ("192.0.3.2/32", "2001:db8:3::2/128")),
        (("-netns", NETNS), "uplink", ("192.0.3.1/32", "2001:db8:3::1/128")),
    )
    for netns, device, networks in ways:
        for network in networks:
            if mtu:
                ip(*netns, "route", "replace", network, "dev", device, "mtu", str(mtu))
            elif run("ip", *netns, "-6" if ":" in network else "-4", "route", "show", network):
                ip(*netns, "route", "delete", network, "dev", device)


def router(mtu: int, icmp: str) -> None:
    """host 192.0.4.1, 2001:db8:4::1 ── router ── 192.0.5.2, 2001:db8:5::2 far-moving."""
    router_delete()
    run("ip", "netns", "add", ROUTER)
    ip("link", "add", ROUTER, "type", "veth", "peer", "name", "near", "netns", ROUTER)
    ip(
        "-netns",
        NETNS,
        "link",
        "add",
        ROUTER,
        "type",
        "veth",
        "peer",
        "name",
        "far",
        "netns",
        ROUTER,
    )
    host, router, beyond = (), ("-netns", ROUTER), ("-netns", NETNS)
    for netns, device, address in (
        (host, ROUTER, "192.0.4.1/24"),
        (host, ROUTER, "2001:db8:4::1/64"),
        (router, "near", "192.0.4.254/24"),
        (router, "near", "2001:db8:4::fe/64"),
        (router, "far", "192.0.5.254/24"),
        (router, "far", "2001:db8:5::fe/64"),
        (beyond, ROUTER, "192.0.5.2/24"),
        (beyond, ROUTER, "2001:db8:5::2/64"),
    ):
        nodad = ["nodad"] if ":" in address else []
        ip(*netns, "address", "add", address, "dev", device, *nodad)
    for netns, device in ((host, ROUTER), (router, "near"), (router, "far"), (beyond, ROUTER)):
        ip(*netns, "link", "set", device, "up")
    for netns, device in ((router, "far"), (beyond, ROUTER)):
        ip(*netns, "link", "set", device, "mtu", str(mtu))
    ip("route", "add", "192.0.5.0/24", "via", "192.0.4.254")
    ip("route", "add", "2001:db8:5::/64", "via", "2001:db8:4::fe")
    ip(*beyond, "route", "add", "192.0.4.0/24", "via", "192.0.5.254")
    ip(*beyond, "route", "add", "2001:db8:4::/64", "via", "2001:db8:5::fe")
    for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
        run("ip", "netns", "exec", ROUTER, "sysctl", "-q", "-w", setting)
    if icmp == "filtered":  # what it sends itself comes from lo, for a rule
        for family in ("-4", "-6"):
            ip(*router, family, "rule", "add", "iif", "lo", "prohibit")


def router_delete() -> None:
    if os.path.exists(f"/run/netns/{ROUTER}"):
        ip("link", "delete", ROUTER)  # synchronously, unlike the end of a namespace
        ip("-netns", NETNS, "link", "delete", ROUTER)
        ip("netns", "delete", ROUTER)


def host_name(name: str, addresses: list[IPv4Address | IPv6Address]) -> None:
    lines = []
    for line in HOSTS.read_text().splitlines():
        address, *names = line.split()
        if others := [each for each in names if each != name]:
            lines.append(" ".join([address, *others]))
    lines += [f"{address} {name}" for address in addresses]
    write_hosts("".join(f"{line}\n" for line in lines))


def write_hosts(text: str) -> None:
    with HOSTS.open("r+") as file:  # in place, because it is mounted at /etc/hosts
        file.write(text)
        file.truncate()


def descriptors(proc: int) -> dict[str, str]:
    found = {}
    directory = os.open("fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    try:
        for number in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                found[number] = os.readlink(number, dir_fd=directory)
    finally:
        os.close(directory)
    return found


def read(proc: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=proc), "rb") as file:
        return file.read()


def addresses(*command: str) -> set[str]:
    (device,) = shown(*command)
    return {
        f"{each['local']}/{each['prefixlen']}"
        for each in device["addr_info"]
        if each["scope"] == "global"
    }


def shown(*command: str) -> list[dict[str, Any]]:
    return json.loads(run("ip", "-json", *command) or "[]")


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


# --- the server ----------------------------------------------------------------------------


SOCKETS = """
import socket
kinds = socket.AF_INET, socket.AF_INET6
sockets = [socket.socket(family, socket.SOCK_DGRAM) for family in kinds]
socket.send_fds(socket.socket(fileno=0), [b"ok\\n"], [each.fileno() for each in sockets])
"""


class Handler(socketserver.StreamRequestHandler):
    timeout = 5  # seconds for a silent client: requests are handled one after the other

    def handle(self) -> None:
        line = self.rfile.readline(MOST_BYTES).decode(errors="replace")
        if line == "roots sockets\n":
            command = ["ip", "netns", "exec", "roots", "/usr/bin/python3", "-I", "-c", SOCKETS]
            subprocess.run(command, stdin=self.request)
            return
        try:
            told = self.server.control.obey(line)
            answer = "ok" if told is None else f"ok {json.dumps(told)}"
        except (Refused, OSError, subprocess.CalledProcessError) as error:
            answer = " ".join(f"{error}".split())
        with contextlib.suppress(BrokenPipeError):  # the client may have gone
            self.wfile.write(f"{answer}\n".encode())


def main() -> None:
    user, stock = sys.argv[1:]
    os.umask(0o177)
    with socketserver.UnixStreamServer(f"{SOCKET}.new", Handler) as server:
        os.umask(0o022)
        server.control = Control(pwd.getpwnam(user).pw_uid, stock)
        shutil.chown(f"{SOCKET}.new", user)
        os.rename(f"{SOCKET}.new", SOCKET)  # it appears only once it listens
        server.serve_forever()


main()
