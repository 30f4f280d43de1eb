"""The wg-quick format: what is taken, and what each mistake is told."""

import base64
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wg4netnsd.config import Config, Endpoint
from wg4netnsd.errors import InvalidConfig, LimitExceeded
from wg4netnsd.wgquick import IGNORABLE, MAX_PEERS, MAX_REPEATED, MAX_SIZE, parse, render


def key(seed: int) -> str:
    return base64.b64encode(bytes((seed * 73 + i * 151) % 256 for i in range(32))).decode()


PRIVATE, PRESHARED, PUBLIC, PUBLIC2 = map(key, range(4))
INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/24\n"  # further lines: 4 …
PEER = f"[Peer]\nPublicKey = {PUBLIC}\n"  # … and after both: 6 …
PEER2 = f"[Peer]\nPublicKey = {PUBLIC2}\n"
PROVIDERS = f"""
# as a provider hands it out
[Interface]
PrivateKey = {PRIVATE}
Address = 10.2.0.2/32, 2a07:b944::2:2/128
DNS = 10.2.0.1, 2a07:b944::2:1
DNS = lan, corp.example.org
ListenPort = 51821
MTU = 1380
Table = off

[Peer]  # NL#42
PublicKey = {PUBLIC}
PresharedKey = {PRESHARED}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = nl-42.example.org:51820
PersistentKeepalive = 25
"""


def parsed(text: str, **options: Any) -> Config:
    return parse(text.encode(), **options)


def refusal(data: str | bytes, **options: Any) -> str:
    """The message of the error that it gives."""
    with pytest.raises(InvalidConfig) as refused:
        parse(data.encode() if isinstance(data, str) else data, **options)
    assert str(refused.value) == f"InvalidConfig: {refused.value.text}"
    return refused.value.text


# ---------------------------------------------------------------- what is taken


def test_a_providers_file() -> None:
    config = parsed(PROVIDERS)
    interface, (peer,) = config.interface, config.peers
    assert interface.private_key.get_secret_value() == base64.b64decode(PRIVATE)
    assert interface.addresses == (
        ip_interface("10.2.0.2/32"),
        ip_interface("2a07:b944::2:2/128"),
    )
    assert interface.dns == (
        ip_address("10.2.0.1"),
        ip_address("2a07:b944::2:1"),
        "lan",
        "corp.example.org",
    )
    assert (interface.listen_port, interface.mtu, interface.table) == (51821, 1380, "off")
    assert peer.public_key == PUBLIC
    assert peer.preshared_key is not None
    assert peer.preshared_key.get_secret_value() == base64.b64decode(PRESHARED)
    assert peer.allowed_ips == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert peer.endpoint == Endpoint("nl-42.example.org", 51820)
    assert peer.persistent_keepalive == 25


def test_what_is_left_out_has_wg_quicks_defaults() -> None:
    config = parsed(INTERFACE + PEER)
    interface, (peer,) = config.interface, config.peers
    assert (interface.listen_port, interface.dns, interface.table) == (0, (), "auto")
    assert config.mtu() == 1420
    assert (peer.preshared_key, peer.endpoint) == (None, None)
    assert (peer.allowed_ips, peer.persistent_keepalive) == ((), 0)
    assert parsed(INTERFACE).peers == ()


@pytest.mark.parametrize(
    "disguise",
    [
        pytest.param(str.upper, id="upper-case"),
        pytest.param(str.lower, id="lower-case"),
        pytest.param(str, id="as-written"),
    ],
)
def test_sections_keys_and_words_are_case_insensitive(disguise: Callable[[str], str]) -> None:
    config = parsed(
        f"{disguise('[Interface]')}\n{disguise('PrivateKey')} = {PRIVATE}\n"
        f"{disguise('Address')} = 10.0.0.2\n{disguise('Table = Auto')}\n"
        f"{disguise('[Peer]')}\n{disguise('PublicKey')} = {PUBLIC}\n"
        f"{disguise('AllowedIPs')} = 10.0.0.0/24\n{disguise('PersistentKeepalive = Off')}\n"
    )
    assert config.interface.addresses == (ip_interface("10.0.0.2/32"),)
    assert config.peers[0].allowed_ips == (ip_network("10.0.0.0/24"),)


@pytest.mark.parametrize(
    "disguise",
    [
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="crlf"),
        pytest.param(lambda text: text.replace("\n", "\r"), id="cr"),
        pytest.param(lambda text: "\ufeff" + text, id="bom"),
        pytest.param(lambda text: text.rstrip("\n"), id="no-last-line-end"),
        pytest.param(lambda text: text.replace("\n", " # ü\n"), id="comments"),
        pytest.param(lambda text: text.replace("\n", "\n#\n\n \t\n"), id="blank-lines"),
        pytest.param(lambda text: text.replace(" = ", "="), id="no-blanks"),
        pytest.param(lambda text: text.replace(" = ", "\t =\t  "), id="many-blanks"),
        pytest.param(lambda text: text.replace("\n", "  \n\t"), id="indented"),
        pytest.param(lambda text: text.replace(", ", ","), id="narrow-lists"),
        pytest.param(lambda text: text.replace(", ", "\t,  "), id="wide-lists"),
        pytest.param(lambda text: text.replace("/32, ", "/32\nAddress = "), id="key-repeated"),
    ],
)
def test_the_layout_makes_no_difference(disguise: Callable[[str], str]) -> None:
    disguised = disguise(PROVIDERS)
    assert disguised != PROVIDERS
    assert parsed(disguised) == parsed(PROVIDERS)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:1", Endpoint("192.0.2.1", 1)),
        ("[2001:DB8::0:1]:65535", Endpoint("2001:db8::1", 65535)),
        ("[fe80::1%eth0]:51820", Endpoint("fe80::1%eth0", 51820)),
        ("vpn.example.org:51820", Endpoint("vpn.example.org", 51820)),
        ("vpn.example.org.:51820", Endpoint("vpn.example.org.", 51820)),
        ("under_score:51820", Endpoint("under_score", 51820)),
        ("localhost:51820", Endpoint("localhost", 51820)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parsed(f"{INTERFACE}{PEER}Endpoint = {text}").peers[0].endpoint == endpoint


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", []),
        ("10.0.0.1", ["10.0.0.1/32"]),
        ("10.0.0.1/24", ["10.0.0.0/24"]),  # as wg(8), which masks it
        ("2001:db8::1/64", ["2001:db8::/64"]),
        ("10.0.0.0/24, 10.0.0.0/24", ["10.0.0.0/24", "10.0.0.0/24"]),
        ("10.0.0.0/24\nAllowedIPs = 10.0.1.0/24", ["10.0.0.0/24", "10.0.1.0/24"]),
    ],
)
def test_allowed_ips(text: str, networks: list[str]) -> None:
    (peer,) = parsed(f"{INTERFACE}{PEER}AllowedIPs = {text}").peers
    assert peer.allowed_ips == tuple(map(ip_network, networks))


@pytest.mark.parametrize("harmless", ["FwMark = off", "FwMark = 0", "SaveConfig = false"])
def test_what_asks_for_nothing_is_taken(harmless: str) -> None:
    assert parsed(f"{INTERFACE}{harmless}\n") == parsed(INTERFACE)


def test_two_peers_may_have_networks_that_lie_in_each_other() -> None:
    config = parsed(f"{INTERFACE}{PEER}AllowedIPs = ::/0\n{PEER2}AllowedIPs = fd00::/8")
    assert config.routes() == (ip_network("::/0"), ip_network("fd00::/8"))


def test_routes_are_the_allowed_ips_each_once() -> None:
    lists = "AllowedIPs = 10.0.0.0/24, 0.0.0.0/0, 0.0.0.0/0, 10.0.0.0/16"
    # The kernel makes that of the address's own network.
    assert parsed(f"{INTERFACE}{PEER}{lists}").routes() == (
        ip_network("0.0.0.0/0"),
        ip_network("10.0.0.0/16"),
    )
    assert parsed(f"{INTERFACE}Table = off\n{PEER}{lists}").routes() == ()


def test_the_mtu_is_the_callers_else_the_files() -> None:
    config = parsed(f"{INTERFACE}MTU = 1300\n")
    assert (config.mtu(), config.mtu(9000)) == (1300, 9000)
    with_ipv6 = parsed(f"{INTERFACE}Address = fd00::2/64\n")
    with pytest.raises(InvalidConfig, match="MTU: 1279 is too small for IPv6: expected 1280"):
        with_ipv6.mtu(1279)


def test_a_large_file_is_taken_up_to_the_limit() -> None:
    padding = "#" * (MAX_SIZE - len(INTERFACE))
    assert parsed(INTERFACE + padding) == parsed(INTERFACE)
    with pytest.raises(LimitExceeded, match="the configuration is longer than 1048576 bytes"):
        parsed(INTERFACE + padding + "#")


def test_peers_are_taken_up_to_the_limit() -> None:
    peers = [f"[Peer]\nPublicKey = {number_key(number)}\n" for number in range(MAX_PEERS + 1)]
    assert len(parsed(INTERFACE + "".join(peers[1:])).peers) == MAX_PEERS
    with pytest.raises(LimitExceeded, match=r"4097 \[Peer\] sections: at most 4096"):
        parsed(INTERFACE + "".join(peers))


def number_key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32)).decode()


@pytest.mark.parametrize("key_name", ["AllowedIPs", "Address", "DNS"])
def test_values_are_taken_up_to_the_limit(key_name: str) -> None:
    """However they are spread over lines."""
    most = MAX_REPEATED[key_name]
    section = f"[Peer]\nPublicKey = {number_key(1)}\n" if key_name == "AllowedIPs" else ""
    values = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(1, most + 1)]
    interface = INTERFACE.replace("Address", "#") if key_name == "Address" else INTERFACE
    text = f"{interface}{section}{key_name} = {', '.join(values)}\n"
    parsed(text)
    with pytest.raises(LimitExceeded, match=f"{key_name}: {most + 1} values: at most {most}"):
        parsed(f"{text}{key_name} = 10.255.0.1\n")


def test_models_are_frozen() -> None:
    config = parsed(PROVIDERS)
    for model in (config, config.interface, config.peers[0]):
        for name in type(model).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(model, name, None)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("DNS = 10.64.0.1", ("10.64.0.1",)),
        ("DNS=10.8.0.1,fd00::1 # by us", ("10.8.0.1", "fd00::1")),
        ("DNS =1.1.1.1 ,  2606:4700:4700::1111", ("1.1.1.1", "2606:4700:4700::1111")),
        ("dns = 10.0.0.1\r\nDns = 10.0.0.2, lan.", ("10.0.0.1", "10.0.0.2", "lan.")),
        ("DNS = fe80::1%wg0", ("fe80::1%wg0",)),
        ("DNS = svc.cluster.local, _x.example, xn--bcher-kva.example", None),
        (f"DNS = {'a1' * 31}.example, {'A1' * 31}.EXAMPLE, {'a-B' * 21}", None),
        ("DNS = Corp.Example.ORG, 1e100.net, 3com", None),
        ("DNS = 10.0.0.1 10.0.0.2,, lan ,", ("10.0.0.1", "10.0.0.2", "lan")),
    ],
)
def test_dns_as_providers_have_it(line: str, wanted: tuple[str, ...] | None) -> None:
    wanted = wanted or tuple(line.removeprefix("DNS = ").split(", "))
    assert tuple(map(str, parsed(INTERFACE + line).interface.dns)) == wanted


# ---------------------------------------------------------------- what is refused

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
        pytest.param(INTERFACE + "# \0", "line 4: a NUL byte: expected text", id="NUL"),
        pytest.param(INTERFACE.encode() + b"# \xff", "line 4: not UTF-8 text", id="latin-1"),
        pytest.param(INTERFACE.encode("utf-16"), "line 1: not UTF-8 text", id="utf-16"),
        # lines and sections
        pytest.param(f"\n{INTERFACE[12:]}", f"line 2: {IN_FRONT}", id="key-without-section"),
        pytest.param(f"{INTERFACE}MTU", "line 4: expected 'Key = value'", id="no-equals-sign"),
        pytest.param(f"{INTERFACE}MTU =", "line 4: MTU has no value", id="no-value"),
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
            f"{INTERFACE}Jc = 4", "line 4: unknown key 'Jc' in [Interface]", id="unknown-key"
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
            "line 4: Table: '123' can't be honoured without privilege: "
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
                ("2001:db8::1:51820", " is not HOST:PORT or [IPV6]:PORT, port 1 to 65535"),
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
            "line 8: PublicKey: the peer of line 4 has the same one",
            id="peer-twice",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = ::/0\n{PEER2}AllowedIPs = fd00::/8, ::/0",
            "line 7: AllowedIPs: ::/0 already belongs to the peer of line 4",
            id="allowed-ips-of-two-peers",
        ),
        pytest.param(
            f"{INTERFACE}{PEER}AllowedIPs = 10.0.0.1/8\n{PEER2}AllowedIPs = 10.9.9.9/8",
            "line 7: AllowedIPs: 10.0.0.0/8 already belongs to the peer of line 4",
            id="allowed-ips-of-two-peers-masked",
        ),
    ],
)
def test_each_mistake_has_its_error(data: str | bytes, message: str) -> None:
    assert refusal(data) == message


HOOKS = {
    "FwMark": "0xca6c",
    "PreUp": "iptables -A FORWARD",
    "PostUp": "iptables -A FORWARD",
    "PreDown": "iptables -D FORWARD",
    "PostDown": "iptables -D FORWARD",
    "SaveConfig": "true",
    "Table": "123",
}


@pytest.mark.parametrize("name", IGNORABLE)
def test_what_needs_privilege_is_refused_until_ignored(name: str) -> None:
    text = f"{INTERFACE}{name} = {HOOKS[name]}\n{PEER}"
    refused = refusal(text, ignore=[other for other in IGNORABLE if other != name])
    assert refused.startswith(f"line 4: {name}")
    assert f"ignore=['{name}']" in refused
    assert parsed(text, ignore=[name.upper()]) == parsed(INTERFACE + PEER)


def test_ignoring_table_leaves_the_values_that_can_be_honoured() -> None:
    assert parsed(f"{INTERFACE}Table = off", ignore=["Table"]).interface.table == "off"


def test_a_hook_may_be_repeated_where_it_is_ignored() -> None:
    assert parsed(f"{INTERFACE}PostUp = a\nPostUp = b\n", ignore=["PostUp"]) == parsed(INTERFACE)


# ---------------------------------------------------------------- any input at all

words = st.sampled_from(
    [
        *("[Interface]", "[Peer]", "[", "PrivateKey", "PublicKey", "PresharedKey", "Address"),
        *("AllowedIPs", "DNS", "Endpoint", "MTU", "Table", "PostUp", "ListenPort", "=", ",", "#"),
        *(PRIVATE, PUBLIC, PRESHARED, "10.0.0.2/24", "::/0", "fe80::1%1", "[::1]:1", "a:1"),
        *("off", "auto", "0", "1420", " ", "\t", "\n", "\r", "\0", "\ufeff", "\u2028", "²"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(
    st.binary()
    | st.text().map(str.encode)
    | st.lists(words).map("".join).map(str.encode)
    | st.lists(st.tuples(words, st.text(max_size=9))).map(
        lambda lines: (INTERFACE + "\n".join(" = ".join(line) for line in lines)).encode()
    )
)
def test_any_bytes_are_a_config_or_invalid(data: bytes) -> None:
    try:
        parse(data)
        message = ""
    except InvalidConfig as error:
        message = str(error)
    assert message.isprintable()


# ---------------------------------------------------------------- any valid configuration

keys = st.binary(min_size=32, max_size=32).map(base64.b64encode).map(bytes.decode)
ports = st.integers(1, 65535)
labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hostnames = st.lists(labels, min_size=1, max_size=4).map(".".join)
addresses = st.ip_addresses()
interfaces = st.builds(
    lambda address, prefix: ip_interface((address, prefix % (address.max_prefixlen + 1))),
    addresses,
    st.integers(0, 128),
)
endpoints = st.builds(Endpoint, addresses.map(str) | hostnames, ports)


def optional(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | of


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """A text, and the values by key of its [Interface] and of each [Peer]."""
    interface = {
        "PrivateKey": draw(keys),
        "Address": draw(st.lists(interfaces, min_size=1, max_size=4, unique_by=lambda i: i.ip)),
        "DNS": draw(st.lists(addresses | hostnames, max_size=4)),
        "ListenPort": draw(optional(ports)),
        "MTU": draw(optional(st.integers(1280, 65535))),
        "Table": draw(optional(st.sampled_from(["auto", "off"]))),
    }
    networks = draw(st.lists(interfaces.map(lambda i: i.network), max_size=9, unique=True))
    peers = [
        {
            "PublicKey": public_key,
            "PresharedKey": draw(optional(keys)),
            "AllowedIPs": networks[number::4],
            "Endpoint": draw(optional(endpoints)),
            "PersistentKeepalive": draw(optional(ports)),
        }
        for number, public_key in enumerate(draw(st.lists(keys, max_size=4, unique=True)))
    ]
    sections = [draw(section("Peer", values)) for values in peers]
    sections.insert(draw(st.integers(0, len(peers))), draw(section("Interface", interface)))
    return draw(st.sampled_from(["\n", "\r\n"])).join(sections), interface, peers


@st.composite
def section(draw: st.DrawFn, name: str, values: dict[str, Any]) -> str:
    """Its lines in any order and layout, lists in one line or several."""

    def lines(key: str, value: Any) -> list[str]:
        if not isinstance(value, list):
            return [f"{key}{equals}{value}"]
        if draw(st.booleans()):
            return [f"{key}{equals}{each}" for each in value]
        return [f"{key}{equals}{','.join(map(str, value))}"] if value else []

    equals = draw(st.sampled_from(["=", " = ", "\t=  "]))
    case = draw(st.sampled_from([str, str.lower, str.upper]))
    blocks = [lines(case(key), value) for key, value in values.items() if value is not None]
    shuffled = draw(st.permutations(blocks))
    comment = draw(st.sampled_from(["", "# [Peer]", " # Key = value"]))
    return "\n".join([f"[{case(name)}]", *(f"{line}{comment}" for b in shuffled for line in b)])


@settings(deadline=None, max_examples=200)
@given(configurations())
def test_a_valid_configuration_comes_back(
    made: tuple[str, dict[str, Any], list[dict[str, Any]]],
) -> None:
    text, interface, peers = made
    config = parsed(text)
    assert parse(render(config).encode()) == config
    got = config.interface
    assert base64.b64encode(got.private_key.get_secret_value()).decode() == interface["PrivateKey"]
    assert list(got.addresses) == interface["Address"]
    assert list(got.dns) == interface["DNS"]
    assert got.listen_port == (interface["ListenPort"] or 0)
    assert got.mtu == interface["MTU"]
    assert got.table == (interface["Table"] or "auto")
    assert len(config.peers) == len(peers)
    for peer, wanted in zip(config.peers, peers, strict=True):
        psk = peer.preshared_key and base64.b64encode(peer.preshared_key.get_secret_value())
        assert peer.public_key == wanted["PublicKey"]
        assert (psk.decode() if psk else None) == wanted["PresharedKey"]
        assert list(peer.allowed_ips) == wanted["AllowedIPs"]
        assert peer.endpoint == wanted["Endpoint"]
        assert peer.persistent_keepalive == (wanted["PersistentKeepalive"] or 0)
