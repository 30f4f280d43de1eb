"""Root of one namespace sends netlink messages of its own, and gives its interface evil names.

Nothing that it says there is the kernel's word: no tunnel's state may be wrong by it, and no other
tunnel may suffer.
"""

import sys
import time
from collections.abc import Iterator

import pytest

from support import attacks
from support.bus import Client
from support.daemon import Daemon
from support.namespaces import MakeNamespace, Namespace, ping
from support.stage import Stage
from support.tunnels import reconfigure, tunnel

LIFETIMES = pytest.mark.parametrize("lifetime", ["namespace", "persistent"])


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
        assert int(inside.check(sys.executable, attacks.__file__, "netlink", "1", "2")) > 100
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
