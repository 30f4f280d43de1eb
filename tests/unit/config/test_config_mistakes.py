"""The wg-quick format: what each mistake is told."""

import base64

import pytest

from support.wgquick import INTERFACE, PEER, PEER2, PRIVATE, PUBLIC, parsed, refusal
from wg4netnsd.config.foreign import IGNORABLE

PLAIN_KEY = "wG4" * 14 + "k"
"""Of a key without its `=`; every fourth has neither `+` nor `/`."""
HIDDEN = "'…' (hidden: it may hold a key)"


@pytest.mark.parametrize("value", ["{}", "{}.", "lan, {}", "{}.lan", "fe80::1%{}", "a.{}x"])
def test_a_key_is_no_domain(value: str) -> None:
    message = refusal(f"{INTERFACE}DNS = {value.format(PLAIN_KEY)}\n")
    assert message == f"line 4: DNS: {HIDDEN} is neither an IP address nor a domain"
    assert "neither an IP" in refusal(f"{INTERFACE}{PEER}Endpoint = {PLAIN_KEY}:51820\n")


CUT = base64.b64encode(bytes(31)).decode()
NO_KEY = "expected a key: 32 bytes in base64, 44 characters"
IN_FRONT = "expected [Interface] or [Peer] before anything else"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # the file
        pytest.param("", "the configuration is empty", id="empty"),
        pytest.param(" \r\n\t\n", "the configuration is empty", id="blank"),
        pytest.param("# nothing\n", "no [Interface] section", id="comment-only"),
        pytest.param(PEER, "no [Interface] section", id="no-interface"),
        pytest.param(b"\x7fELF\x02\x01\x01\0\0", "line 1: a NUL byte: expected text", id="binary"),
        pytest.param(INTERFACE + "MTU = \0", "line 4: a NUL byte: expected text", id="NUL"),
        pytest.param(INTERFACE.encode() + b"\xff = 1", "line 4: not UTF-8 text", id="latin-1"),
        pytest.param(
            INTERFACE.encode("utf-16-le"), "line 1: a NUL byte: expected text", id="utf-16"
        ),
        pytest.param(
            INTERFACE.encode("utf-16") + b"\0",
            "it begins with UTF-16's byte order mark, but is not UTF-16",
            id="half-utf-16",
        ),
        # lines and sections
        pytest.param(f"\n{INTERFACE[12:]}", f"line 2: {IN_FRONT}", id="key-without-section"),
        pytest.param(f"{INTERFACE}MTU", "line 4: expected 'Key = value'", id="no-equals-sign"),
        pytest.param(f"{INTERFACE}ListenPort =", "line 4: ListenPort has no value", id="no-value"),
        pytest.param(
            f"{INTERFACE}= 1", "line 4: unknown key in [Interface]", id="value-without-key"
        ),
        pytest.param(
            INTERFACE + INTERFACE, "line 4: a second [Interface] section", id="two-interfaces"
        ),
        pytest.param(
            f"{INTERFACE}[Peers]",
            "line 4: unknown section '[Peers]': expected [Interface] or [Peer]",
            id="unknown-section",
        ),
        pytest.param(
            f"{INTERFACE}[Peer",
            "line 4: unknown section '[Peer': expected [Interface] or [Peer]",
            id="unclosed-section",
        ),
        pytest.param(
            f"{INTERFACE}Mut = 4", "line 4: unknown key 'Mut' in [Interface]", id="unknown-key"
        ),
        pytest.param(
            f"{INTERFACE}jC = 4",
            "line 4: Jc belongs to AmneziaWG, and only hides that this is WireGuard: "
            "remove it, or pass the option ignore=['Jc']",
            id="junk",
        ),
        pytest.param(
            f"{INTERFACE}H1 = 2",
            "line 4: H1 belongs to AmneziaWG, and changes messages so that wireguard-go cannot "
            "read them: expected a configuration of plain WireGuard",
            id="other-messages",
        ),
        pytest.param(
            f"{INTERFACE}ExcludedApplications = org.example",
            "line 4: ExcludedApplications belongs to WireGuard for Android, and chooses the apps "
            "that use the tunnel: remove it, or pass the option ignore=['ExcludedApplications']",
            id="android",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}Reserved = 1, 2, 3",
            "line 6: Reserved belongs to Cloudflare's WARP, and changes messages as wireguard-go "
            "cannot: expected a configuration of plain WireGuard",
            id="warp",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}Jc = 4", "line 6: unknown key 'Jc' in [Peer]", id="junk-in-a-peer"
        ),
        pytest.param(
            f"{INTERFACE}{PEER}Address = 10.0.0.1",
            "line 6: unknown key 'Address' in [Peer]",
            id="key-of-the-other-section",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}PostUp = true",
            "line 6: unknown key 'PostUp' in [Peer]",
            id="hook-in-a-peer",
        ),
        pytest.param(
            f"{INTERFACE}ListenPort = 1\nListenPort = 1",
            "line 5: ListenPort is given twice, first in line 4",
            id="key-twice",
        ),
        # [Interface]
        pytest.param(
            "[Interface]\nAddress = 10.0.0.2",
            "line 1: [Interface] has no PrivateKey",
            id="no-private-key",
        ),
        pytest.param(
            f"#\n[Interface]\nPrivateKey = {PRIVATE}",
            "line 2: [Interface] has no Address",
            id="no-address",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {PRIVATE}\nAddress =",
            "line 1: [Interface] has no Address",
            id="address-empty",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {CUT}\nAddress = 10.0.0.2",
            "line 2: PrivateKey: expected a key of 32 bytes in base64, got 31 bytes",
            id="private-key-of-31-bytes",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {PRIVATE[:-1]}\nAddress = 10.0.0.2",
            f"line 2: PrivateKey: {NO_KEY}",
            id="private-key-without-padding",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {'00' * 32}\nAddress = 10.0.0.2",
            "line 2: PrivateKey: expected a key of 32 bytes in base64, got 48 bytes",
            id="private-key-in-hex",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {PRIVATE[:20]} {PRIVATE[20:]}\nAddress = 10.0.0.2",
            f"line 2: PrivateKey: {NO_KEY}",
            id="private-key-with-a-blank",
        ),
        pytest.param(
            "[Interface]\nPrivateKey = ü\nAddress = 10.0.0.2",
            f"line 2: PrivateKey: {NO_KEY}",
            id="private-key-not-ascii",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {'A' * 42}B=\nAddress = 10.0.0.2",
            "line 2: PrivateKey: expected a key in canonical base64: "
            "its last character has stray bits",
            id="private-key-with-stray-bits",
        ),
        pytest.param(
            f"{INTERFACE}Address = 10.0.0.256/24",
            "line 4: Address: '10.0.0.256/24' is not an IP address with an optional /prefix",
            id="address",
        ),
        pytest.param(
            f"{INTERFACE}Address = 10.0.0.3, fd00::/129",
            "line 4: Address: 'fd00::/129' is not an IP address with an optional /prefix",
            id="address-in-a-list",
        ),
        pytest.param(
            f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = ,",
            "line 1: [Interface] has no Address",
            id="address-of-a-comma",
        ),
        pytest.param(
            f"{INTERFACE}Address = fe80::1%eth0/64",
            "line 4: Address: 'fe80::1%eth0/64' is not an IP address with an optional /prefix",
            id="address-with-a-scope",
        ),
        pytest.param(
            f"{INTERFACE}DNS = 1.1.1",
            "line 4: DNS: '1.1.1' is neither an IP address nor a domain",
            id="dns",
        ),
        pytest.param(
            f"{INTERFACE}DNS = 10.0.0.1, a..b",
            "line 4: DNS: 'a..b' is neither an IP address nor a domain",
            id="dns-domain",
        ),
        pytest.param(
            f"{INTERFACE}DNS = 10.0.0.1, ~a..b",
            "line 4: DNS: '~a..b' is neither an IP address nor a domain",
            id="dns-route-only-domain",
        ),
        pytest.param(
            f"{INTERFACE}DNS = ~{PLAIN_KEY}",
            f"line 4: DNS: {HIDDEN} is neither an IP address nor a domain",
            id="dns-route-only-key",
        ),
        pytest.param(
            f"{INTERFACE}DNS = 10.0.0.1, fe80::1%w/g",
            "line 4: DNS: 'fe80::1%w/g' is neither an IP address nor a domain",
            id="dns-scope",
        ),
        pytest.param(  # once took years
            f"{INTERFACE}DNS = {'a' * 60}!",
            f"line 4: DNS: {HIDDEN} is neither an IP address nor a domain",
            id="dns-long",
        ),
        pytest.param(
            f"{INTERFACE}ListenPort = 65536",
            "line 4: ListenPort: '65536' is not a number from 0 to 65535",
            id="listen-port",
        ),
        pytest.param(
            f"{INTERFACE}ListenPort = ５",
            "line 4: ListenPort: '５' is not a number from 0 to 65535",
            id="listen-port-in-other-digits",
        ),
        pytest.param(
            f"{INTERFACE}MTU = 575",
            "line 4: MTU: '575' is not a number from 576 to 65535",
            id="mtu",
        ),
        pytest.param(
            f"{INTERFACE}MTU = 1e3",
            "line 4: MTU: '1e3' is not a number from 576 to 65535",
            id="mtu-no-number",
        ),
        pytest.param(
            f"{INTERFACE}Address = 10.9.0.7/24\nAddress = fd00::2, 10.9.0.7",
            "line 5: Address: 10.9.0.7 is given twice, first in line 4",
            id="address-twice",
        ),
        pytest.param(
            f"{INTERFACE}Address = 10.9.0.7/0.0.0.255",
            "line 4: Address: '10.9.0.7/0.0.0.255' is not an IP address with an optional /prefix",
            id="address-with-a-mask",
        ),
        pytest.param(
            f"{INTERFACE}Address = fd00::2\nMTU = 1279",
            "line 5: MTU: 1279 is too small for IPv6: expected 1280 or more",
            id="mtu-for-ipv6",
        ),
        pytest.param(
            f"{INTERFACE}Table = 123",
            "line 4: Table: '123' needs privileges that wg4netnsd does not have: "
            "expected 'auto' or 'off', or the option ignore=['Table']",
            id="table",
        ),
        # [Peer]
        pytest.param(
            f"{INTERFACE}[Peer]\nAllowedIPs = ::/0",
            "line 4: [Peer] has no PublicKey",
            id="no-public-key",
        ),
        pytest.param(
            f"{INTERFACE}[Peer]\nPublicKey = {PUBLIC[4:]}",
            "line 5: PublicKey: expected a key of 32 bytes in base64, got 29 bytes",
            id="public-key",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}PresharedKey = secret",
            f"line 6: PresharedKey: {NO_KEY}",
            id="preshared-key",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = 10.0.0.0/33",
            "line 6: AllowedIPs: '10.0.0.0/33' is not a network",
            id="allowed-ips",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = ::/0\nAllowedIPs = 10.0.0.0/8, all",
            "line 7: AllowedIPs: 'all' is not a network",
            id="allowed-ips-in-a-list",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = fe80::%eth0/64",
            "line 6: AllowedIPs: 'fe80::%eth0/64' is not a network",
            id="allowed-ips-with-a-scope",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}PersistentKeepalive = -1",
            "line 6: PersistentKeepalive: '-1' is not a number from 0 to 65535 or 'off'",
            id="keepalive",
        ),
        *(
            pytest.param(
                f"{INTERFACE}{PEER}Endpoint = {endpoint}",
                f"line 6: Endpoint: '{endpoint}'{message}",
                id=f"endpoint-{endpoint}",
            )
            for endpoint, message in [
                ("example.org", " is not HOST:PORT or [IPV6]:PORT, port 1 to 65535"),
                ("example.org:0", " is not HOST:PORT or [IPV6]:PORT, port 1 to 65535"),
                ("example.org:65536", " is not HOST:PORT or [IPV6]:PORT, port 1 to 65535"),
                (
                    "2001:db8::1:51820",
                    " is not HOST:PORT or [IPV6]:PORT, port 1 to 65535: "
                    "expected [2001:db8::1]:51820",
                ),
                ("2001:db8::1:0", " is not HOST:PORT or [IPV6]:PORT, port 1 to 65535"),
                ("[192.0.2.1]:1", ": the host is not an IP address"),
                ("[fe80::1%a b]:1", ": the host is not an IP address"),
                ("192.0.2.256:1", ": the host is not an IP address"),
                ("exam ple.org:1", ": the host is neither an IP address nor a host name"),
                (":51820", ": the host is neither an IP address nor a host name"),
            ]
        ),
        # between peers
        pytest.param(
            f"{INTERFACE}{PEER}{PEER2}{PEER}",
            "line 8: PublicKey: the peer in line 4 has the same key",
            id="peer-twice",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = ::/0\n{PEER2}AllowedIPs = fd00::/8, ::/0",
            "line 7: AllowedIPs: ::/0 already belongs to the peer in line 4",
            id="allowed-ips-of-two-peers",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = 10.0.0.1/8\n{PEER2}AllowedIPs = 10.9.9.9/8",
            "line 7: AllowedIPs: 10.0.0.0/8 already belongs to the peer in line 4",
            id="allowed-ips-of-two-peers-masked",
        ),
    ],
)
def test_each_mistake_has_its_error(data: str | bytes, message: str) -> None:
    assert refusal(data) == message


VALUES = {
    "FwMark": "0xca6c",
    "PreUp": "iptables -A FORWARD",
    "PostUp": "iptables -A FORWARD",
    "PreDown": "iptables -D FORWARD",
    "PostDown": "iptables -D FORWARD",
    "SaveConfig": "true",
    "Table": "123",
    "IncludedApplications": "org.example",
    "ExcludedApplications": "org.example, com.example",
    "Jc": "4",
    "Jmin": "40",
    "Jmax": "70",
    **{f"I{n}": "<b 0xf6ab3267fa><c><t><r 10>" for n in range(1, 6)},
}


@pytest.mark.parametrize("name", IGNORABLE)
def test_what_can_be_done_without_is_refused_until_ignored(name: str) -> None:
    text = f"{INTERFACE}{name} = {VALUES[name]}\n{PEER}"
    refused = refusal(text, ignore=[other for other in IGNORABLE if other != name])
    assert refused.startswith(f"line 4: {name}")
    assert f"ignore=['{name}']" in refused
    assert parsed(text, ignore=[name.upper()]) == parsed(INTERFACE + PEER)


def test_ignoring_table_leaves_the_values_that_can_be_honoured() -> None:
    assert parsed(f"{INTERFACE}Table = off", ignore=["Table"]).interface.table == "off"


def test_a_hook_may_be_repeated_where_it_is_ignored() -> None:
    assert parsed(f"{INTERFACE}PostUp = a\nPostUp = b\n", ignore=["PostUp"]) == parsed(INTERFACE)
