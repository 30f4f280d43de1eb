"""The options of CreateTunnel are declared once, in api/options.py; the contract, wg4netnsctl, its
manual page and its completions say the same of them."""

import os
import re
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import fields
from pathlib import Path

import pytest

from wg4netnsd import names
from wg4netnsd.api import options
from wg4netnsd.api.options import OF_RECONFIGURE, SIGNATURES, Options
from wg4netnsd.bus.codec import Variant
from wg4netnsd.bus.contract import load
from wg4netnsd.config.foreign import IGNORABLE, IPV6
from wg4netnsd.ctl import create
from wg4netnsd.ctl.program import parser
from wg4netnsd.errors import InvalidArgs
from wg4netnsd.tunnel.lifetime import Lifetime

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/wg4netnsctl.1").read_text()
COMPLETIONS = {path.name: path.read_text() for path in ROOT.glob("contrib/completions/*")}

FLAGS = {
    "name": "--name office",
    "interface": "--interface wg1",
    "mtu": "--mtu 1400",
    "wait": "--handshake",
    "timeout_usec": "--timeout 5",
    "ignore": "--ignore PostUp",
}
"""An option of wg4netnsctl for each that a creator on the command line can choose. The lifetime
follows from the command, but for attach, and so does who is root in the namespace; only a program
has a lease to pass."""

TRANSITS = {
    "transit_tunnel": "--via office",
    "transit": "--transit-netns /proc/self/ns/net",
    "transit_sockets": "--transit-fd 0 --transit-fd 1",
}
"""Those of which there can be only one."""

WITHOUT_FLAG = {"lifetime", "lease", "trust_root"}

FLAG_NAMES = [
    *(each.split()[0] for each in (*FLAGS.values(), *TRANSITS.values())),
    "--transit-pid",
]

SECONDS = Options().timeout_usec // 10**6
DEFAULTS = {"interface": Options().interface, "timeout_usec": str(SECONDS)}


def described(interface: str, method: str) -> dict[str, str]:
    """The options that the contract's comment on a method lists, with their types."""
    comment = re.search(rf"<!--\s+{method}:(.*?)-->", load(interface).xml, re.DOTALL)
    assert comment
    return dict(re.findall(r"^ +- (\w+) \((\w+)\): ", comment[1], re.MULTILINE))


def command(name: str) -> ArgumentParser:
    (commands,) = (each for each in parser()._actions if isinstance(each, _SubParsersAction))
    found: ArgumentParser = commands.choices[name]
    return found


def flags(name: str) -> set[str]:
    return {flag for action in command(name)._actions for flag in action.option_strings}


# ---------------------------------------------------------------- the contract


def test_the_contract_lists_them_in_their_order() -> None:
    assert list(described(names.MANAGER, "CreateTunnel").items()) == list(SIGNATURES.items())
    of_reconfigure = {name: SIGNATURES[name] for name in OF_RECONFIGURE}
    assert described(names.TUNNEL, "Reconfigure") == of_reconfigure


def test_the_contract_has_the_defaults() -> None:
    xml = " ".join(load(names.MANAGER).xml.split())
    for text in (
        f'default "{Options().interface}"',
        f'"{Options().lifetime}" (default)',
        f'"{Options().wait}" (default)',
        f"default {SECONDS} s",
    ):
        assert text in xml


def test_what_is_not_given_has_its_default() -> None:
    assert options.parse({}) == Options()
    assert [each.name for each in fields(Options)] == list(SIGNATURES)


# ---------------------------------------------------------------- wg4netnsctl


def parsed(name: str, *words: str) -> Namespace:
    return parser().parse_args([name, *" ".join(words).split()])


@pytest.mark.parametrize("name", ["run", "up", "attach --pid 1"])
def test_the_command_line_has_each_of_them(name: str) -> None:
    assert FLAGS.keys() | TRANSITS.keys() | WITHOUT_FLAG == SIGNATURES.keys()
    arguments = parser().parse_args([*name.split(), *" ".join(FLAGS.values()).split(), "conf"])
    asked = create.options(arguments, "suggested")
    assert {option: signature for option, (signature, _) in asked.items()} == {
        option: SIGNATURES[option] for option in FLAGS
    }
    taken = options.parse({option: Variant(*variant) for option, variant in asked.items()})
    assert taken == Options(
        name="office",
        interface="wg1",
        mtu=1400,
        wait="handshake",
        timeout_usec=5_000_000,
        ignore=("PostUp",),
    )


@pytest.mark.parametrize("option", TRANSITS)
@pytest.mark.parametrize("name", ["run", "up", "attach --pid 1"])
def test_the_command_line_has_one_transit(name: str, option: str) -> None:
    arguments = parser().parse_args([*name.split(), *TRANSITS[option].split(), "conf"])
    asked = create.transit(arguments)
    (signature, value) = asked[option]
    assert (list(asked), signature) == ([option], SIGNATURES[option])
    taken = options.parse({option: Variant(signature, value)})
    assert getattr(taken, option) == (tuple(value) if signature == "ah" else value)
    if signature == "h":
        os.close(value)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        (("transit", "transit_tunnel"), "transit_tunnel"),
        (("transit_sockets", "transit"), "transit_sockets"),
        (("transit_tunnel", "transit_sockets"), "transit_tunnel"),
    ],
)
def test_two_transits(chosen: tuple[str, ...], named: str) -> None:
    values = {"transit": 0, "transit_sockets": [0], "transit_tunnel": "office"}
    asked = {name: Variant(SIGNATURES[name], values[name]) for name in chosen}
    with pytest.raises(InvalidArgs, match=f"option '{named}': expected only one of transit, "):
        options.parse(asked)


def test_without_flags_the_defaults_are_the_daemons() -> None:
    asked = create.options(parsed("up", "conf"), "")
    assert options.parse({o: Variant(*variant) for o, variant in asked.items()}) == Options()
    assert parsed("attach", "--pid 1 conf").lifetime == Options().lifetime


def test_reload_has_those_of_reconfigure() -> None:
    its = [FLAGS[option] for option in OF_RECONFIGURE if option in FLAGS]
    asked = create.changes(parsed("reload", *its, "office"))
    assert asked.keys() | TRANSITS.keys() == set(OF_RECONFIGURE)
    assert all(signature == SIGNATURES[option] for option, (signature, _) in asked.items())
    assert create.transit(parsed("reload", "--via", "exit", "office"))
    assert flags("reload") & {flag.split()[0] for flag in FLAGS.values()} == {
        flag.split()[0] for flag in its
    }


class Waited:
    """A reply that comes at once, and how long was to be waited for it."""

    seconds = 0.0

    def wait(self, _callback: object, seconds: float) -> tuple[str]:
        self.seconds = seconds
        return ("/path",)


def test_it_waits_as_long_as_the_daemon() -> None:
    reply = Waited()
    create.finish(reply, {})  # type: ignore[arg-type]
    assert reply.seconds == SECONDS + create.START_TIME


def test_help_page_and_completions_have_the_defaults() -> None:
    assert DEFAULTS.keys() <= FLAGS.keys()
    page = " ".join(re.sub(r"\n\.(\w+ )?", " ", PAGE).split())
    for option, default in DEFAULTS.items():
        flag = FLAGS[option].split()[0]
        (action,) = (each for each in command("up")._actions if flag in each.option_strings)
        assert f"(default: {default})" in str(action.help)
        assert re.search(rf"Fl -{flag[2:]} Ar \w+ [^.]*; default {default}[ .]", page), flag
        for name in ("_wg4netnsctl", "wg4netnsctl.fish"):  # bash shows none
            assert re.search(rf"{flag[2:]}\b.*default:? {default}\b", COMPLETIONS[name]), name


@pytest.mark.parametrize("flag", FLAG_NAMES)
def test_page_and_completions_have_each_of_them(flag: str) -> None:
    assert re.search(rf"^\.It (.* | )?Fl -{flag[2:]}\b", PAGE, re.MULTILINE)
    for name, text in COMPLETIONS.items():
        spelled = f"-l {flag[2:]}" if name.endswith(".fish") else flag
        assert re.search(rf"{spelled}\b", text), name


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions_have_the_values(name: str) -> None:
    assert " ".join(sorted([*IGNORABLE, IPV6])) in COMPLETIONS[name]
    (lifetime,) = (a for a in command("attach")._actions if "--lifetime" in a.option_strings)
    assert set(lifetime.choices or ()) <= set(Lifetime)
    assert " ".join(lifetime.choices or ()) in COMPLETIONS[name]
