"""No private or preshared key can be found anywhere, whatever has been done with it.

A busy session of its own, and a proof that the search finds what it looks for.
test_secrets_of_all.py searches for the keys of all other tests.
"""

import base64
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import systemd.journal

from support import leaks
from support.bus import MANAGER, OBJECT_MANAGER, ROOT, Client, DBusError
from support.configs import SHOWN, Secrets, key
from support.daemon import Daemon
from support.installed import crash
from support.journal import Journal
from support.leaks import SESSION, Needles
from support.manager import UserManager
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import wait_for
from support.stage import Stage
from support.tunnels import reconfigure

pytestmark = pytest.mark.long

END = "org.example.End"
SIGNALS = [signal.SIGABRT, signal.SIGSEGV, signal.SIGQUIT, signal.SIGKILL]
"""Go answers all but the last with a traceback, which shows arguments."""


# ---------------------------------------------------------------- the bus, overheard


@contextlib.contextmanager
def overheard(address: str, to: Path) -> Iterator[Path]:
    """All messages of that bus, as they are: a capture, in pcap's format, without descriptors."""
    command = ["dbus-monitor", "--pcap", "--address", address]
    with (
        to.open("wb") as output,
        subprocess.Popen(command, stdout=output) as monitor,
        Client(address) as client,
    ):
        try:
            # Its first messages come when somebody talks.
            wait_for(lambda: client.bus("GetId") and to.stat().st_size > 1000, "it listens")
            yield to
            client.has_owner(END)
            wait_for(lambda: END.encode() in to.read_bytes(), "it has heard all")
        finally:
            monitor.terminate()


# ---------------------------------------------------------------- a busy session


def mangled(conf: str, secret: str) -> Iterator[str]:
    """Configurations that must be refused, with most of a key where it is or where none belongs."""
    for at in (0, 1, 10, 21, 22, 33, 42, 43):
        for insertion in ("*", " ", "\t", "=", "\u00e9", "#", "AA"):
            yield conf.replace(secret, secret[:at] + insertion + secret[at:])
    yield conf.replace(secret, secret[:-1])
    yield conf.replace(secret, secret[:20])
    yield conf.replace(secret, "") + secret
    for line in (
        "{}", "[{}]", "{} = 1", "Address = {}", "Address = 10.9.0.9/{}", "DNS = {}!", "MTU = {}",
        "ListenPort = {}", "Table = {}", "FwMark = {}", "PostUp = echo {}", "PrivateKey {}",
        "PrivateKey: {}", "PrivateKey = {0}, {0}", "PrivateKey = {0}\nPrivateKey = {0}",
        "[Peer]\nPublicKey = {}x", "[Peer]\nEndpoint = {}:1:1", "[Peer]\nEndpoint = {}",
        "[Peer]\nAllowedIPs = {}", "[Peer]\nPersistentKeepalive = {}", "[Peer]\nPresharedKey = {}",
        "[{0}]\n{0} = {0}", "\x00{}", "[Peer]\nPublicKey =\nPresharedKey = {}",
    ):  # fmt: skip
        for shape in (secret, f"{secret[:8]}\t{secret[8:]}"):
            yield f"{conf.partition('[Peer]')[0]}\n{line.format(shape)}\n"


def try_both(client: Client, inside: Namespace, path: str, conf: str) -> bool:
    """Create by it, and reconfigure to it. Whether that was refused; else it is undone."""
    try:
        client.close_tunnel(client.create(inside, conf))
        reconfigure(client, path, conf)
    except DBusError:
        with pytest.raises(DBusError):
            reconfigure(client, path, conf)
        return True
    return False


def ask_everything(client: Client, path: str) -> None:
    client.peers(path)
    client.get_all(path)
    client.get_all(ROOT, MANAGER)
    client.manager("Describe")
    client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    for each in (ROOT, path):
        client.call(each, "org.freedesktop.DBus.Introspectable", "Introspect")


def replace_engine(client: Client, path: str, number: signal.Signals) -> None:
    """By killing it while it is asked."""
    before = client.get(path, "EnginePID")
    os.kill(before, number)
    wait_for(lambda: client.get(path, "EnginePID") not in (0, before), "a new engine", 20)
    client.tunnel(path, "WaitForState", "ast", ["up"], 20_000_000)


def config_file(directory: Path, conf: str) -> str:
    path = directory / "wg.conf"
    path.touch(mode=0o600)
    path.write_text(conf)
    return str(path)


@pytest.fixture
def overhears(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    directory = tmp_path_factory.mktemp("captures")
    return lambda address: overheard(address, directory / f"{abs(hash(address))}.pcap")


def test_no_key_is_anywhere(
    installed: UserManager,
    start_daemon: Callable[..., Daemon],
    namespace: MakeNamespace,
    stage: Stage,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    overhears: Callable[[str], AbstractContextManager[Path]],
) -> None:
    inputs = (tmp_path_factory.getbasetemp(), Path(os.environ["WG4NETNSD_STAGE"]))
    daemon, secrets = start_daemon("--verbose"), Secrets()
    one, two = namespace(), namespace()
    with overhears(daemon.address) as first, overhears(installed.address) as second:
        with Client(installed.address) as client:
            path = client.create(one, stage.conf(0), lifetime="persistent")
            by_path = (two.path, config_file(tmp_path, stage.conf(1)), {})
            other = client.manager("CreateTunnelFromPaths", "ssa{sv}", *by_path)
            for end in ("SIGKILL", "SIGABRT", "SIGSEGV"):
                ping(one, stage.far.ipv4)
                crash(installed, end)
                ask_everything(client, path)
            replace_engine(client, path, signal.SIGABRT)
            reconfigure(client, path, stage.conf(2))
            for each in (path, other):
                client.close_tunnel(each)

        client, conf = daemon.client, secrets.conf()
        path = client.create(one, conf)
        for number in SIGNALS:
            replace_engine(client, path, number)
            ask_everything(client, path)
        reconfigure(client, path, secrets.conf())
        lines = [
            line.split(" = ")[1] for line in conf.splitlines() if "edKey" in line or "eKey" in line
        ]
        refused = [try_both(client, two, path, bad) for one in lines for bad in mangled(conf, one)]
        assert refused.count(True) > 0.9 * len(refused)
        assert Needles(lines, SHOWN).search(leaks.messages(SESSION)) == []
        assert SESSION.needles.search(leaks.processes()) == []
        client.close_tunnel(path)
    SESSION.keep_log(daemon)
    assert len(SESSION.messages) > 100
    assert b"EnginePID" in first.read_bytes() and b"EnginePID" in second.read_bytes()
    assert SESSION.needles.search(leaks.captured([first, second])) == []
    assert SESSION.needles.search(leaks.everywhere(SESSION, inputs)) == []


# ---------------------------------------------------------------- the search can find


def base64_of(secret: str) -> str:
    return secret


def hex_of(secret: str) -> str:
    return base64.b64decode(secret).hex()


def upper_hex_of(secret: str) -> str:
    return hex_of(secret).upper()


def cut_off(secret: str) -> str:
    return secret[10:35]


TEXTS = pytest.mark.parametrize("shape", [base64_of, hex_of, upper_hex_of, cut_off])
Planted = AbstractContextManager[Iterable[tuple[str, bytes]]]


@contextlib.contextmanager
def in_a_process(*options: str, **environment: str) -> Iterator[Iterable[tuple[str, bytes]]]:
    code = "print(flush=True); input()"
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", code, *options]
    with subprocess.Popen(command, env=os.environ | environment, **streams) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        yield leaks.processes()
        process.stdin.write(b"\n")


def in_a_command_line(text: str) -> Planted:
    return in_a_process(text)


def in_an_environment(text: str) -> Planted:
    return in_a_process(PLANTED=text)


@contextlib.contextmanager
def in_a_descriptor_s_name(text: str) -> Iterator[Iterable[tuple[str, bytes]]]:
    with os.fdopen(os.memfd_create(text), "wb"):
        yield leaks.processes()


@contextlib.contextmanager
def in_a_mapping_s_name(text: str) -> Iterator[Iterable[tuple[str, bytes]]]:
    fd = os.memfd_create(text)
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096):
        os.close(fd)
        yield leaks.processes()


@contextlib.contextmanager
def in_a_socket_s_name(text: str) -> Iterator[Iterable[tuple[str, bytes]]]:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("\0" + text)
        yield leaks.processes()


@contextlib.contextmanager
def in_the_journal(text: str) -> Iterator[Iterable[tuple[str, bytes]]]:
    Journal()  # there is one
    systemd.journal.send("planted", PLANTED=text)
    Journal()  # which has been read up to here
    yield leaks.journal()


@contextlib.contextmanager
def in_an_error(text: str) -> Iterator[Iterable[tuple[str, bytes]]]:
    DBusError("org.example.Error", f"expected something else than {text}")
    yield leaks.messages(SESSION)


@TEXTS
@pytest.mark.parametrize(
    "plant",
    [
        in_a_command_line,
        in_an_environment,
        in_a_descriptor_s_name,
        in_a_mapping_s_name,
        in_a_socket_s_name,
        in_the_journal,
        in_an_error,
    ],
)
def test_it_would_be_found(
    stage: Stage, plant: Callable[[str], Planted], shape: Callable[[str], str]
) -> None:
    secret = key()
    with plant(shape(secret)) as place:
        assert Needles([secret]).search(place)


@TEXTS
def test_it_would_be_found_in_a_daemon_s_log(
    start_daemon: Callable[..., Daemon], shape: Callable[[str], str]
) -> None:
    secret = key()
    daemon = start_daemon()
    with daemon.log_path.open("a") as log:
        log.write("\n" * 10_000 + shape(secret))  # beyond what the daemon has yet to write
    daemon.stop()
    assert Needles([secret]).search(leaks.logs(SESSION))


@pytest.mark.parametrize(
    "directory", ["/tmp", "/dev/shm", os.environ["HOME"], os.environ["XDG_RUNTIME_DIR"], "."]
)
@pytest.mark.parametrize("shape", [str.encode, base64.b64decode])
def test_it_would_be_found_in_a_file(
    directory: str, shape: Callable[[str], bytes], stage: Stage
) -> None:
    secret, path = key(), Path(directory, "core.1234")
    path.write_bytes(b"\x7fELF" + bytes(5000) + shape(secret) + bytes(5000))
    try:
        assert len(Needles([secret]).search(leaks.files())) == 1
        path.write_bytes(b"")
        assert Needles([secret]).search(leaks.files()) == []
    finally:
        path.unlink()


@pytest.mark.parametrize("shape", [str.encode, base64.b64decode])
def test_it_would_be_found_in_a_large_file(shape: Callable[[str], bytes], tmp_path: Path) -> None:
    secret, path = key(), tmp_path / "core"
    with path.open("wb") as file:
        file.write(b"\x7fELF" + bytes(3 * leaks.PIECE))
        file.seek(2 * leaks.PIECE - len(shape(secret)) // 2)  # half in one piece, half in the next
        file.write(shape(secret))
    assert Needles([secret]).search(leaks.files())
    path.unlink()


def test_files_that_are_older_than_the_suite_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, path = key(), tmp_path / "file"
    path.write_text(secret)
    since = wait_for(lambda: moment_after(path), "the clock of files has gone on")
    assert Needles([secret]).search(leaks.files(since=since)) == []
    with monkeypatch.context() as clock:
        boot_ns = leaks._boot_ns() - 60 * 10**9  # the clock has been set back by a minute
        clock.setattr(leaks, "_boot_ns", lambda: boot_ns)
        assert Needles([secret]).search(leaks.files(since=since))
    path.write_text(secret)
    assert Needles([secret]).search(leaks.files(since=since))


def moment_after(path: Path) -> leaks.Moment | None:
    now = leaks.Moment()
    return now if now.is_after(path.stat()) else None


@pytest.mark.parametrize("signature", ["s", "ay", "v"])
def test_it_would_be_found_on_the_bus(
    daemon: Daemon, client: Client, tmp_path: Path, signature: str
) -> None:
    secret = key()
    values = {"s": secret, "ay": base64.b64decode(secret), "v": ("s", secret)}
    with overheard(daemon.address, tmp_path / "capture") as capture, pytest.raises(DBusError):
        client.call(ROOT, MANAGER, "Nonsense", signature, (values[signature],))
    assert Needles([secret]).search(leaks.captured([capture]))
