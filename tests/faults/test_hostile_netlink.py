"""Root of one namespace sends netlink messages of its own, and gives its interface evil names.

Nothing that it says there is the kernel's word: no tunnel's state may be wrong by it, and no other
tunnel may suffer.
"""

import sys
import time
from collections.abc import Iterator

import pytest

from support.bus import Client
from support.daemon import Daemon
from support.namespaces import MakeNamespace, Namespace, ping
from support.stage import Stage
from support.tunnels import reconfigure, tunnel

LIFETIMES = pytest.mark.parametrize("lifetime", ["namespace", "persistent"])

# Sends to the link group, and to every netlink socket of the namespace, what the kernel could say
# of wg0 and a bit more.
FORGE = r"""
import random, socket, struct

NEWLINK, DELLINK, DELNSID, ERROR, DONE, OVERRUN = 16, 17, 89, 2, 3, 4
index = socket.if_nametoindex("wg0")

def message(kind, body, sequence=0, port=0):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, port) + body

def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

def link(name, flags=0x10091):
    head = struct.pack("=BxHiII", 0, 0xFFFE, index, flags, 0)
    return head + (attribute(3, name) if name is not None else b"")

forged = [
    message(NEWLINK, link(b"evil\0name\0")),
    message(NEWLINK, link(b"\xff\xfe\0")),
    message(NEWLINK, link(b"\x1b]0;owned\x07\0")),
    message(NEWLINK, link(b"x" * 4000)),
    message(NEWLINK, link(None)),
    message(NEWLINK, link(b"wg0\0", flags=0)),
    message(DELLINK, link(b"wg0\0")),
    message(DELLINK, link(b"wg0\0") + attribute(45, struct.pack("=i", 0))),
    message(DELNSID, bytes(4) + attribute(1, struct.pack("=i", 0))),
    message(ERROR, struct.pack("=i", -19) + bytes(16)),
    message(ERROR, struct.pack("=i", -22) + bytes(16)),
    message(ERROR, struct.pack("=i", -1) + bytes(16)),
    message(ERROR, b""),
    message(DONE, b""),
    message(OVERRUN, b""),
    message(NEWLINK, b""),
    message(NEWLINK, link(b"wg0\0"))[:20],
    b"", b"\0", bytes(15), bytes(16), b"\xff" * 64,
]
generator = random.Random(1)
for _ in range(500):
    some = bytearray(generator.choice(forged) or b"\0")
    for _ in range(generator.randrange(1, 4)):
        some[generator.randrange(len(some))] = generator.randrange(256)
    forged.append(bytes(some))

with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sender:
    sender.bind((0, 0))
    own = sender.getsockname()[0]
    listed = [line.split() for line in open("/proc/self/net/netlink").read().splitlines()[1:]]
    ports = {int(pid) for _, protocol, pid, *_ in listed if protocol == "0"} - {0, own}
    sent = 0
    for each in forged:
        for destination in [(0, 1)] + [(port, 0) for port in ports]:
            try:
                sender.sendto(each, destination)
                sent += 1
            except OSError:  # that socket takes none, or is no more
                pass
print(sent)
"""


@pytest.fixture(autouse=True)
def other(daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage) -> Iterator[None]:
    """Another namespace, with a tunnel of its own that nothing happens to."""
    inside = namespace()
    with tunnel(client, inside, stage.conf(1), name="other") as path:
        pid = client.get(path, "EnginePID")
        yield
        ping(inside, stage.far.ipv4)
        assert (client.get(path, "State"), client.get(path, "EnginePID")) == ("up", pid)
        assert client.get(path, "RestartCount") == 0


@LIFETIMES
def test_forged_messages(client: Client, inside: Namespace, stage: Stage, lifetime: str) -> None:
    with tunnel(client, inside, stage.conf(0), lifetime=lifetime) as path:
        ping(inside, stage.far.ipv4)
        client.subscribe(path=path)
        before = client.get_all(path)
        assert int(inside.check(sys.executable, "-c", FORGE)) > 500
        ping(inside, stage.far.ipv4)
        now = client.get_all(path)
        for changing in (before, now):
            changing.pop("Peers")
        assert now == before
        assert [each for each in client.pending_signals() if "LinkState" in str(each.body)] == []
        # And what the kernel says afterwards is still heard.
        inside.check("ip", "link", "set", "wg0", "down")
        told = client.next_signal("PropertiesChanged", path=path).body[1]
        assert told["LinkState"] == ("s", "down")


# Each as the shell's printf has it, and as everybody is shown it.
NAMES = {
    r"\033[31mred": r"\x1b[31mred",
    r"\377\376": r"\xff\xfe",
    r"caf\303\251": "café",
    r"\302\233x": r"\x9bx",
    r"a\177b": r"a\x7fb",
}


@LIFETIMES
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_word(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, lifetime: str, name: str
) -> None:
    with tunnel(client, inside, stage.conf(0), lifetime=lifetime) as path:
        client.subscribe(path=path)
        rename = f"ip link set wg0 down; ip link set wg0 name \"$(printf '{name}')\""
        inside.check("sh", "-euc", rename)
        while client.get(path, "Interface") == "wg0":
            client.next_signal("PropertiesChanged", path=path)
        assert client.get(path, "Interface") == NAMES[name]
        assert client.get(path, "LinkState") == "down"
        inside.check("sh", "-euc", f"ip link set \"$(printf '{name}')\" up")
        while client.get(path, "LinkState") != "up":
            client.next_signal("PropertiesChanged", path=path)
        reconfigure(client, path, stage.conf(0, MTU="1300"))
        assert client.get(path, "Mtu") == 1300
        ping(inside, stage.far.ipv4)
        assert "\x1b" not in daemon.log


# Ends with the interface up, under the name "last".
FLAP = """
for i in $(seq 300); do
    printf '%s\\n' 'link set NAME down' "link set NAME name w$i" "link set w$i up" \\
        "link set w$i down" "link set w$i name NAME" 'link set NAME up'
done | sed "s/NAME/wg0/g" | ip -batch -
ip link set wg0 down
ip link set wg0 name last
ip link set last up
"""


@LIFETIMES
def test_changes_without_end(
    client: Client, inside: Namespace, stage: Stage, lifetime: str
) -> None:
    """1,800 of them: at most ten a second are told, and the last of them always."""
    with tunnel(client, inside, stage.conf(0), lifetime=lifetime) as path:
        client.subscribe(member="PropertiesChanged", path=path)
        began = time.monotonic()
        inside.check("sh", "-euc", FLAP)
        told = 0
        while (client.get(path, "Interface"), client.get(path, "LinkState")) != ("last", "up"):
            client.next_signal("PropertiesChanged", path=path)
            told += 1
        told += len(client.pending_signals())
        assert told <= 10 * (time.monotonic() - began + 2)
        reconfigure(client, path, stage.conf(0))
        ping(inside, stage.far.ipv4)
