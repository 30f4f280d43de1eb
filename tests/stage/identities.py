"""Generate the keys of the far end and of its clients.

  identities.py FAR_CONF STOCK_CONF STAGE_JSON RUNTIME SHORT UNPACKED

The first two files are for `wg setconf`: at the far end, and at the stock client that benchmarks
compare with; STOCK_CONF with 1 and 2 at its end are for two more, one within the other. The third
tells the user's suite everything that it needs to connect. The real `wg` generates new keys at each
start.
"""

import json
import subprocess
import sys
from pathlib import Path

CLIENTS = 34  # three of them stock's
PORT = 51820


def wg(*arguments: str, stdin: str = "") -> str:
    command = ["wg", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=True
    ).stdout.strip()


def client(number: int) -> dict[str, object]:
    private_key = wg("genkey")
    return {
        "private_key": private_key,
        "public_key": wg("pubkey", stdin=private_key),
        "preshared_key": wg("genpsk"),
        "ipv4": f"198.51.100.{10 + number}",
        "ipv6": f"2001:db8:1::{10 + number:x}",
    }


def far_conf(private_key: str, clients: list[dict[str, object]]) -> str:
    lines = ["[Interface]", f"PrivateKey = {private_key}", f"ListenPort = {PORT}"]
    for each in clients:
        lines += [
            "[Peer]",
            f"PublicKey = {each['public_key']}",
            f"PresharedKey = {each['preshared_key']}",
            f"AllowedIPs = {each['ipv4']}/32, {each['ipv6']}/128",
        ]
    return "\n".join(lines) + "\n"


def stock_conf(public_key: str, me: dict[str, object], far: str = "192.0.2.2") -> str:
    return (
        f"[Interface]\nPrivateKey = {me['private_key']}\n"
        f"[Peer]\nPublicKey = {public_key}\nPresharedKey = {me['preshared_key']}\n"
        f"AllowedIPs = 0.0.0.0/0\nEndpoint = {far}:{PORT}\n"
    )


def stage(
    public_key: str, clients: list[dict[str, object]], runtime: str, short: str, unpacked: str
) -> dict[str, object]:
    return {
        "far": {
            "public_key": public_key,
            "endpoint_v4": f"192.0.2.2:{PORT}",
            "endpoint_v6": f"[2001:db8::2]:{PORT}",
            "ipv4": "198.51.100.1",
            "ipv6": "2001:db8:1::1",
            "echo_port": 7,
            "iperf3_port": 5201,
        },
        "moving": {
            "endpoint_v4": f"192.0.3.2:{PORT}",
            "endpoint_v6": f"[2001:db8:3::2]:{PORT}",
            "routed_v4": f"192.0.5.2:{PORT}",
            "routed_v6": f"[2001:db8:5::2]:{PORT}",
        },
        "control": "/run/wg4netnsd-control",
        "short_engine": short,
        "unpacked": unpacked,
        "clients": clients,
        "roots_netns": "/run/netns/roots",
        "no_tun_runtime": f"{runtime}.no-tun",
        "closed_tun_runtime": f"{runtime}.closed-tun",
    }


def write(path: str, text: str) -> None:
    Path(path).touch(mode=0o600)
    Path(path).write_text(text)


def main() -> None:
    private_key = wg("genkey")
    clients = [client(number) for number in range(1, CLIENTS + 1)]
    write(sys.argv[1], far_conf(private_key, clients))
    public_key = wg("pubkey", stdin=private_key)
    *ours, stock, outer, inner = clients
    write(sys.argv[2], stock_conf(public_key, stock))
    write(f"{sys.argv[2]}1", stock_conf(public_key, outer))
    write(f"{sys.argv[2]}2", stock_conf(public_key, inner, "198.51.100.1"))
    description = stage(public_key, ours, *sys.argv[4:])
    description["stock_address"] = stock["ipv4"]
    write(sys.argv[3], json.dumps(description, indent=1))


main()
