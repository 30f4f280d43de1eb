"""What is logged: to a real journald with its fields, to stderr as people read it."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import systemd.journal

from support.bus import Client
from support.journal import Journal
from support.manager import UNIT, UserManager, installed, user_manager
from support.namespaces import MakeNamespace
from support.stage import Stage, keys
from wg4netnsd.engine.log import level_of
from wg4netnsd.systemd.journal import STATE_CHANGED

pytestmark = pytest.mark.distribution

PUBLIC = "AbCd1234efghijklmnopqrstuvwxyzABCDEFGHIJKLM="
SECRET = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PROGRAM = f"""
import logging
from wg4netnsd.systemd import journal

journal.set_up(logging.INFO)
log = logging.getLogger("of.a.module")
office = journal.tunnel_log(log, "office", (4, 4026532345))
peer = {{"PEER": "{PUBLIC}"}}
"""
JOURNALS_SOCKET = "/run/systemd/journal"


@pytest.fixture
def logged(stage: Stage) -> Journal:
    return Journal()


def run(code: str, *within: str, stderr: int = subprocess.PIPE, **environment: str) -> str:
    """Run it after PROGRAM; what it writes to stderr, if that is a pipe."""
    command = [*within, sys.executable, "-"]  # a command line would be in the entries
    its = os.environ | environment
    done = subprocess.run(command, input=PROGRAM + code, stderr=stderr, text=True, env=its)
    return done.stderr


def run_in_journal(code: str, *within: str) -> None:
    """Run it with stderr as a service has it."""
    with systemd.journal.stream("a-service", level_prefix=True) as stream:
        status = os.fstat(stream.fileno())
        its = f"{status.st_dev}:{status.st_ino}"
        run(code, *within, stderr=stream.fileno(), JOURNAL_STREAM=its)


def ours(entry: dict[str, str]) -> dict[str, str]:
    """Its fields without those that journald itself adds."""
    return {name: value for name, value in entry.items() if not name.startswith("_")}


# ---------------------------------------------------------------- stderr


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("log.info('ready')", "INFO    ready"),
        ("office.warning('no %s', 'answer')", "WARNING tunnel office: no answer"),
        ("office.info('hi', extra=peer)", "INFO    tunnel office: peer AbCd1234…: hi"),
        ("log.info('hi', extra=peer)", "INFO    peer AbCd1234…: hi"),
    ],
)
def test_on_a_terminal_lines_say_what_they_are_about(code: str, line: str) -> None:
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {re.escape(line)}\n", run(code))


def test_what_is_below_the_level_is_not_logged() -> None:
    assert run("office.debug('details')") == ""


def test_another_s_journal_stream_is_not_ours(logged: Journal) -> None:
    assert "tunnel office: hi" in run("office.info('hi')", JOURNAL_STREAM="1:2")
    assert logged.entries(TUNNEL="office") == []


# ---------------------------------------------------------------- the journal


def test_an_entry_has_its_fields_and_no_others(logged: Journal) -> None:
    run_in_journal("office.error('no %s', 'answer', extra=peer | {'MESSAGE_ID': 'e' * 32})")
    (entry,) = logged.entries(TUNNEL="office")
    assert ours(entry) == {
        "MESSAGE": "tunnel office: peer AbCd1234…: no answer",
        "MESSAGE_ID": "e" * 32,
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "wg4netnsd",
        "CODE_FILE": "<stdin>",
        "CODE_LINE": str(PROGRAM.count("\n") + 1),
        "CODE_FUNC": "<module>",
        "TUNNEL": "office",
        "NETNS": "4026532345",
        "PEER": PUBLIC,
    }
    assert entry["_TRANSPORT"] == "journal"


def test_an_entry_of_no_tunnel_has_no_such_field(logged: Journal) -> None:
    run_in_journal("log.info('ready')")
    (entry,) = logged.entries(SYSLOG_IDENTIFIER="wg4netnsd")
    assert entry["MESSAGE"] == "ready"
    assert not entry.keys() & {"TUNNEL", "NETNS", "PEER", "MESSAGE_ID"}


def test_a_traceback_is_one_entry(logged: Journal) -> None:
    run_in_journal("try: 1 / 0\nexcept ZeroDivisionError: office.exception('a defect')")
    (message,) = logged.messages(TUNNEL="office")
    assert message.startswith("tunnel office: a defect\nTraceback (most recent call last):\n")
    assert message.endswith("\nZeroDivisionError: division by zero")


def test_where_only_the_stream_is_there_lines_have_their_priority(logged: Journal) -> None:
    hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    hidden += [f'mount -t tmpfs none {JOURNALS_SOCKET} && exec "$@"', "sh"]
    run_in_journal("office.warning('no\\nanswer')", *hidden)
    entries = logged.entries(SYSLOG_IDENTIFIER="a-service")
    assert [each["MESSAGE"] for each in entries] == ["tunnel office: no", "answer"]
    assert {each["PRIORITY"] for each in entries} == {"4"}
    assert {each["_TRANSPORT"] for each in entries} == {"stdout"}


# ---------------------------------------------------------------- secrets

LEAKS = {
    "text": f"office.info('{SECRET}')",
    "argument": f"office.info('%s', '{SECRET}')",
    "hex": f"office.info('private_key={SECRET.encode().hex()}')",
    "exception": f"try: {{}}['{SECRET}']\nexcept KeyError: office.exception('a defect')",
    "cause": f"""
try:
    try: int('{SECRET}')
    except ValueError as error: raise OSError from error
except OSError: office.exception('a defect')""",
    "stack": f"office.info('here', stack_info='{SECRET}')",
    "uncaught": f"int('{SECRET}')",
    "thread": f"import threading\nthreading.Thread(target=int, args=['{SECRET}']).start()",
    "__del__": f"class C:\n def __del__(self): int('{SECRET}')\nC()",
    "line that does not format": f"office.info('%d', '{SECRET}')",
}


@pytest.mark.parametrize("code", LEAKS.values(), ids=LEAKS)
def test_no_line_has_key_material_on_stderr(code: str) -> None:
    written = run(code)
    assert written
    assert SECRET not in written
    assert SECRET.encode().hex() not in written


@pytest.mark.parametrize("code", LEAKS.values(), ids=LEAKS)
def test_no_entry_has_key_material(code: str, logged: Journal) -> None:
    run_in_journal(code)
    found = logged.entries(SYSLOG_IDENTIFIER="wg4netnsd") + logged.entries(
        SYSLOG_IDENTIFIER="a-service"
    )
    assert found
    everything = "".join(str(value) for entry in found for value in entry.values())
    assert SECRET not in everything
    assert SECRET.encode().hex() not in everything


# ---------------------------------------------------------------- wireguard-go's lines


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("ERROR: 2025/05/22 11:12:13 Failed to send", logging.WARNING),
        ("panic: runtime error: index out of range", logging.ERROR),
        ("fatal error: out of memory", logging.ERROR),
        ("UAPI listener started", logging.INFO),
    ],
)
def test_an_engine_s_line_has_a_level(line: str, level: int) -> None:
    assert level_of(line) == level


# ---------------------------------------------------------------- the daemon, as a user unit


@pytest.fixture(scope="module")
def service(stage: Stage) -> Iterator[UserManager]:
    with user_manager() as manager, installed(manager):
        yield manager


def test_a_tunnel_s_life_is_one_entry_a_transition(
    service: UserManager, namespace: MakeNamespace, stage: Stage, logged: Journal
) -> None:
    inside = namespace()
    with Client(service.address) as client:
        path = client.create(inside, stage.conf(), name="a.tunnel")
        client.tunnel(path, "Restart")
        client.close_tunnel(path)
    entries = logged.entries(f"--user-unit={UNIT}", TUNNEL="a.tunnel")
    assert [each["MESSAGE"] for each in entries if each.get("MESSAGE_ID") == STATE_CHANGED] == [
        "tunnel a.tunnel: starting → up: created",
        "tunnel a.tunnel: up → restarting: requested",
        "tunnel a.tunnel: restarting → up: the engine is back",
        "tunnel a.tunnel: up → stopping: closed by request",
        "tunnel a.tunnel: stopping → closed: closed by request",
    ]
    assert {each["NETNS"] for each in entries} == {str(inside.id[1])}
    assert logged.messages(NETNS=inside.id[1]) == [each["MESSAGE"] for each in entries]


def test_a_peer_s_transition_is_one_entry(
    service: UserManager, namespace: MakeNamespace, stage: Stage, logged: Journal
) -> None:
    inside = namespace()
    with Client(service.address) as client:
        path = client.create(inside, stage.conf(), name="a.tunnel", wait="handshake")
        client.close_tunnel(path)
    key = stage.far.public_key
    messages = [
        f"tunnel a.tunnel: peer {key[:8]}…: {change}"
        for change in ("idle → handshaking", "handshaking → active", "active → stale")
    ]
    assert logged.messages(f"--user-unit={UNIT}", PEER=key) == messages
    assert logged.messages(PEER=key, TUNNEL="a.tunnel", NETNS=inside.id[1]) == messages


def test_the_service_logs_nothing_else_and_no_secret(
    service: UserManager, namespace: MakeNamespace, stage: Stage, logged: Journal
) -> None:
    mine, me = keys(), stage.clients[0]
    bad = stage.conf().replace(me.private_key, mine.private).replace("Address", "Adress")
    with Client(service.address) as client:
        path = client.create(namespace(), stage.conf(), name="office")
        with pytest.raises(Exception, match="Adress"):
            client.create(namespace(), bad)
        client.close_tunnel(path)
        service.systemctl("stop", UNIT)
    entries = logged.entries(f"--user-unit={UNIT}", "SYSLOG_IDENTIFIER=wg4netnsd")
    assert entries
    assert {each["_TRANSPORT"] for each in entries} == {"journal"}
    everything = str(entries)
    for secret in (mine.private, me.private_key, me.preshared_key):
        assert secret not in everything
