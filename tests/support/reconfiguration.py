"""Configurations for a running tunnel to change to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from support.fds import udp_port_in_use
from support.namespaces import Namespace
from support.stage import Keys, Stage, keys, preshared_key

PAIRS = [keys() for _ in range(5)]
SECRETS = [preshared_key() for _ in range(2)]


@dataclass(frozen=True)
class Peer:
    key: str
    networks: tuple[str, ...] = ()
    endpoint: str = ""
    secret: str = ""
    keepalive: int = 0

    def text(self) -> str:
        lines = [f"[Peer]\nPublicKey = {self.key}", f"AllowedIPs = {', '.join(self.networks)}"]
        lines += [f"Endpoint = {self.endpoint}"] * bool(self.endpoint)
        lines += [f"PresharedKey = {self.secret}"] * bool(self.secret)
        lines += [f"PersistentKeepalive = {self.keepalive}"] * bool(self.keepalive)
        return "\n".join(lines)


@dataclass(frozen=True)
class Conf:
    """A configuration; str() is its text."""

    me: Keys = PAIRS[0]
    addresses: tuple[str, ...] = ("10.9.0.2/24",)
    peers: tuple[Peer, ...] = ()
    mtu: int = 0
    port: int = 0
    dns: tuple[str, ...] = ()
    table: str = ""

    def __str__(self) -> str:
        lines = [f"[Interface]\nPrivateKey = {self.me.private}"]
        lines += [f"Address = {', '.join(self.addresses)}"]
        lines += [f"MTU = {self.mtu}"] * bool(self.mtu)
        lines += [f"ListenPort = {self.port}"] * bool(self.port)
        lines += [f"DNS = {', '.join(self.dns)}"] * bool(self.dns)
        lines += [f"Table = {self.table}"] * bool(self.table)
        return "\n".join([*lines, *(peer.text() for peer in self.peers)]) + "\n"


def far_conf(stage: Stage, client: int = 0, **more: Any) -> Conf:
    """By which a client reaches the far end, and nothing else."""
    me = stage.clients[client]
    far = Peer(
        stage.far.public_key,
        (f"{stage.far.ipv4}/32", f"{stage.far.ipv6}/128"),
        stage.far.endpoint_v4,
        me.preshared_key,
    )
    addresses = (f"{me.ipv4}/24", f"{me.ipv6}/64")
    return Conf(Keys(me.private_key, me.public_key), addresses, (far,), **more)


def peer(number: int, *networks: str, **more: Any) -> Peer:
    """One that is nowhere."""
    return Peer(PAIRS[number].public, networks, **more)


ONE = Conf(peers=(peer(1, "10.20.0.0/16", "fd20::/64", endpoint="127.0.0.1:9"),))
(P1,) = ONE.peers
P2, P3 = peer(2, "10.30.0.0/16"), peer(3, "10.40.0.0/16", "fd40::/64", secret=SECRETS[0])


def variations(base: Conf) -> Iterator[Conf]:
    """All that may change beside the one peer of `base`, which stays."""
    (far,) = base.peers
    silent = peer(1, "10.20.0.0/16", "fd20::/64", endpoint="127.0.0.1:9", keepalive=25)
    yield replace(base, peers=(far, silent))
    yield replace(base, peers=(replace(silent, networks=("10.21.0.0/16",), secret=SECRETS[0]), far))
    yield replace(base, peers=(peer(2, "10.21.0.0/16"), far, peer(3, "fd20::/64")))
    yield replace(base, addresses=(*base.addresses, "10.77.0.1/24", "fd77::1/64"))
    yield replace(base, addresses=("10.78.0.1/24", "fd78::1/64", *base.addresses), mtu=1300)
    yield replace(base, mtu=1280, dns=("198.51.100.1", "example.org"))
    yield replace(base, peers=(replace(far, networks=("0.0.0.0/0", "::/0")),), table="off")
    yield replace(base, peers=(replace(far, networks=("0.0.0.0/0", "::/0"), keepalive=25),))
    yield replace(base, peers=(replace(far, secret=SECRETS[0]),), table="off")
    yield base


def free_port() -> int:
    bound, port = udp_port_in_use()
    bound.close()
    return port


BROKEN: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "truncated": lambda text: text[: text.index("PrivateKey") + 30],
    "no interface": lambda text: text[text.index("[Peer]") :] if "[Peer]" in text else "# none",
    "a second interface": lambda text: text + "[Interface]\n",
    "a bad key": lambda text: text.replace("PrivateKey = ", "PrivateKey = !", 1),
    "no key": lambda text: text + "[Peer]\nAllowedIPs = 192.0.2.0/24\n",
    "a peer twice": lambda text: text + 2 * f"[Peer]\nPublicKey = {SECRETS[1]}\n",
    "a network twice": lambda text: (
        text + "".join(f"[Peer]\nPublicKey = {key}\nAllowedIPs = ::9/128\n" for key in SECRETS)
    ),
    "no network": lambda text: (
        text + f"[Peer]\nPublicKey = {SECRETS[1]}\nAllowedIPs = 10.0.0.0/33\n"
    ),
    "no endpoint": lambda text: (
        text + f"[Peer]\nPublicKey = {SECRETS[1]}\nEndpoint = 192.0.2.1:65536\n"
    ),
    "no address": lambda text: text.replace("Address = ", "Address = 10.0.0.256, ", 1),
    "an address twice": lambda text: text.replace("Address = ", "Address = ::7/64, ::7/128, ", 1),
    "unknown": lambda text: text + "Colour = blue\n",
    "a command": lambda text: text.replace("[Interface]\n", "[Interface]\nPostUp = true\n", 1),
    "small": lambda text: text.replace("[Interface]\n", "[Interface]\nMTU = 575\n", 1),
    "no text": lambda text: text + "\0",
}


def own_things(inside: Namespace) -> None:
    """What a namespace's owner may have there."""
    for command in (
        "ip tuntap add other mode tun",
        "ip link set other up",
        "ip route add 10.99.0.0/16 dev other",
        "ip route add fd99::/64 dev other",
    ):
        inside.check(*command.split())
