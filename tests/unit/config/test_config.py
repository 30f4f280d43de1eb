"""The wg-quick format: what is taken, and that anything else is refused."""

import base64
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from support.wgquick import INTERFACE, PEER, PEER2, PRESHARED, PRIVATE, PROVIDERS, PUBLIC, parsed
from wg4netnsd.config.model import Endpoint, unmapped
from wg4netnsd.config.wgquick import MAX_PEERS, MAX_REPEATED, MAX_SIZE, parse, render
from wg4netnsd.errors import InvalidConfig, LimitExceeded

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
        pytest.param(lambda text: text.replace("[", "[ ").replace("]", " ]"), id="wide-headers"),
        pytest.param(
            lambda text: text.replace("42.example.org:", "42.example.org : "), id="wide-port"
        ),
        pytest.param(lambda text: text.replace("/0", " / 0"), id="wide-prefixes"),
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
    "comment",
    [
        pytest.param("für".encode("latin-1"), id="latin-1"),
        pytest.param("für“".encode("cp1252"), id="cp1252"),
        pytest.param(bytes(set(range(256)) - set(b"\r\n")), id="any-byte"),
    ],
)
def test_a_comment_may_hold_any_bytes(comment: bytes) -> None:
    data = PROVIDERS.replace("\n", " #…\n").encode().replace("…".encode(), comment)
    assert parse(data) == parsed(PROVIDERS)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_read_if_it_begins_with_its_mark(encoding: str) -> None:
    assert parse(f"\ufeff{PROVIDERS}# ü\n".encode(encoding)) == parsed(PROVIDERS)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:1", Endpoint("192.0.2.1", 1)),
        ("192.0.2.1 : 1", Endpoint("192.0.2.1", 1)),
        ("[2001:db8::1] :\t1", Endpoint("2001:db8::1", 1)),
        ("[2001:DB8::0:1]:65535", Endpoint("2001:db8::1", 65535)),
        ("[fe80::1%eth0]:51820", Endpoint("fe80::1%eth0", 51820)),
        ("[::ffff:192.0.2.1]:51820", Endpoint("192.0.2.1", 51820)),
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
        ("10.0.0.1 / 24", ["10.0.0.0/24"]),
        ("2001:db8::1/64", ["2001:db8::/64"]),
        ("10.0.0.0/24, 10.0.0.0/24", ["10.0.0.0/24", "10.0.0.0/24"]),
        ("10.0.0.0/24\nAllowedIPs = 10.0.1.0/24", ["10.0.0.0/24", "10.0.1.0/24"]),
    ],
)
def test_allowed_ips(text: str, networks: list[str]) -> None:
    (peer,) = parsed(f"{INTERFACE}{PEER}AllowedIPs = {text}").peers
    assert peer.allowed_ips == tuple(map(ip_network, networks))


@pytest.mark.parametrize(
    "harmless",
    [
        "FwMark = off",
        "FwMark = 0",
        "SaveConfig = false",
        *(f"{key} =" for key in ("MTU", "Table", "DNS", "PreUp", "PostUp", "PreDown", "PostDown")),
        "MTU = # 1400\nMTU =",
        "Jc = 0\nS1 = 0\nS2 = 0\nH1 = 1\nh2 = 2\nH3 = 3\nH4 = 4",  # AmneziaWG, as WireGuard
    ],
)
def test_what_asks_for_nothing_is_taken(harmless: str) -> None:
    assert parsed(f"{INTERFACE}{harmless}\n") == parsed(INTERFACE)


def test_domains_that_only_route_are_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = parsed(f"{INTERFACE}DNS = 10.0.0.1, ~corp.example, lan\nDNS = ~.\n")
    assert config.interface.dns == (ip_address("10.0.0.1"), "lan")
    assert [record.getMessage() for record in caplog.records] == [
        "line 4: DNS: '~corp.example' has no effect: all look-ups go there",
        "line 5: DNS: '~.' has no effect: all look-ups go there",
    ]


def test_a_peers_line_is_known() -> None:
    assert parsed(f"{INTERFACE}{PEER}# …\n{PEER2}").peer_lines == (4, 7)


def test_two_peers_may_have_networks_that_lie_in_each_other() -> None:
    config = parsed(f"{INTERFACE}{PEER}AllowedIPs = 0.0.0.0/0\n{PEER2}AllowedIPs = 10.0.0.0/8")
    assert config.routes() == (ip_network("0.0.0.0/0"), ip_network("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("addresses", "routes", "unroutable"),
    [
        ("10.1.0.2/24", ["0.0.0.0/0"], ["::/0", "fd00::/8"]),
        ("fd01::2/64", ["::/0", "fd00::/8"], ["0.0.0.0/0"]),
        ("10.1.0.2/24, fd01::2/64", ["::/0", "0.0.0.0/0", "fd00::/8"], []),
    ],
)
def test_networks_of_a_version_without_an_address_get_no_route(
    addresses: str, routes: list[str], unroutable: list[str]
) -> None:
    interface = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = {addresses}\n"
    config = parsed(f"{interface}{PEER}AllowedIPs = ::/0, 0.0.0.0/0, fd00::/8")
    assert config.routes() == tuple(map(ip_network, routes))
    assert config.unroutable() == tuple(map(ip_network, unroutable))
    off = parsed(f"{interface}Table = off\n{PEER}AllowedIPs = ::/0, 0.0.0.0/0")
    assert off.routes() == off.unroutable() == ()


@pytest.mark.parametrize(
    ("dns", "lost"),
    [
        ("1.1.1.1", ["1.1.1.1"]),
        ("10.1.0.1, example.org", []),
        ("10.1.0.1, 1.1.1.1, fd01::53", ["1.1.1.1", "fd01::53"]),
        ("127.0.0.1, 10.0.0.2", []),
        ("", []),
    ],
)
def test_name_servers_that_no_peer_has(dns: str, lost: list[str]) -> None:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/24\n"
    text += f"DNS = {dns}\n" if dns else ""
    peer = f"{PEER}AllowedIPs = 10.1.0.0/24"
    assert list(map(str, parsed(text + peer).unreachable_dns())) == lost
    assert parsed(f"{text}Table = off\n{peer}").unreachable_dns() == []


def test_ipv6_can_be_ignored() -> None:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = fd00::2/64, 10.0.0.2/24\nMTU = 1200\n"
    text += f"DNS = fd00::1, 10.0.0.1, example.org\n{PEER}AllowedIPs = ::/0, 0.0.0.0/0\n"
    text += "Endpoint = [2001:db8::1]:51820"
    config = parse(text.encode(), ["ipv6"])
    assert list(map(str, config.interface.addresses)) == ["10.0.0.2/24"]
    assert list(map(str, config.interface.dns)) == ["10.0.0.1", "example.org"]
    assert list(map(str, config.peers[0].allowed_ips)) == ["0.0.0.0/0"]
    assert config.peers[0].endpoint == Endpoint("2001:db8::1", 51820)


@pytest.mark.parametrize(
    ("addresses", "said", "path_mtu", "expected"),
    [
        ("10.0.0.2", "", 1500, 1420),
        ("10.0.0.2", "", 1440, 1360),
        ("10.0.0.2", "", 1300, 1220),
        ("10.0.0.2", "", 600, 576),
        ("10.0.0.2, fd00::2", "", 1300, 1280),
        ("10.0.0.2, fd00::2", "", 9000, 8920),
        ("10.0.0.2, fd00::2", "", 65520, 8920),
        ("10.0.0.2, fd00::2", "", 65535, 1420),
        ("10.0.0.2, fd00::2", "", 65536, 1420),
        ("10.0.0.2, fd00::2", "MTU = 1400\n", 1300, 1400),
    ],
)
def test_the_mtu_of_a_path(addresses: str, said: str, path_mtu: int, expected: int) -> None:
    config = parsed(f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = {addresses}\n{said}")
    assert config.mtu(path_mtu=path_mtu) == expected
    assert config.mtu(1300, path_mtu) == 1300


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
    with pytest.raises(LimitExceeded, match="the configuration is longer than 2097152 bytes"):
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
        endpoint = wanted["Endpoint"]
        assert peer.endpoint == (endpoint and endpoint._replace(host=unmapped(endpoint.host)))
        assert peer.persistent_keepalive == (wanted["PersistentKeepalive"] or 0)
