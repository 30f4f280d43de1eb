"""Clients that want different things of the same tunnels at the same moment, or leave meanwhile."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from support.bus import CREATE, MANAGER, ROOT, Bus, Client, DBusError
from support.configs import Secrets
from support.crowd import CLOSED, Outcomes, by_clients, engines_of, interfaces, sampled
from support.daemon import Daemon
from support.fds import memfd, opened, pipe
from support.namespaces import MakeNamespace, Namespace
from support.processes import children, is_alive, open_fds, stopped, wait_for
from support.stage import Stage
from support.tunnels import reconfigure
from wg4netnsd.names import tunnel_path

Hold = Callable[[Daemon, Stage], contextlib.AbstractContextManager["Held"]]

LIFETIMES = pytest.mark.parametrize("lifetime", ["namespace", "persistent", "client", "lease"])


@contextlib.contextmanager
def one_engine_at_most(daemon: Daemon, *spaces: Namespace) -> Iterator[None]:
    """In the meantime: one that carries packets and one that waits. No namespace has two TUNs."""

    def look() -> tuple[int, int]:
        return len(engines_of([daemon.pid])), max(len(interfaces(s.pid)) for s in spaces)

    with sampled(look) as seen:
        yield
    most_engines, most_interfaces = map(max, zip(*seen, strict=True))
    assert 1 <= most_engines <= 2
    assert most_interfaces == 1


def assert_nothing_is_left(client: Client, *spaces: Namespace) -> None:
    """At once, as whoever asked for it has the reply."""
    assert client.tunnels() == []
    assert [interfaces(inside.pid) for inside in spaces] == [set() for _ in spaces]


# ---------------------------------------------------------------- many want the same

CLIENTS, ROUNDS = 20, 40


@pytest.mark.parametrize(
    ("same", "lifetime"),
    [
        ("namespace", "namespace"),
        ("namespace", "persistent"),
        ("namespace", "client"),
        ("name", "namespace"),
        ("name", "persistent"),
    ],
)
def test_one_of_many_wins(
    daemon: Daemon, client: Client, bus: Bus, namespace: MakeNamespace, same: str, lifetime: str
) -> None:
    spaces = [namespace() for _ in range(CLIENTS if same == "name" else 1)]
    names = ["same"] if same == "name" else [f"name{number}" for number in range(CLIENTS)]
    outcomes, conf = Outcomes(), Secrets().conf()

    def contender(number: int) -> Callable[[Client], None]:
        random = Random(number)
        options = {"interface": f"wg{number}", "lifetime": lifetime}

        def contend(me: Client) -> None:
            mine, name = spaces[number % len(spaces)], names[number % len(names)]
            for _ in range(ROUNDS):
                outcomes.attempt("create", lambda: me.create(mine, conf, name=name, **options))
                closed = tunnel_path(random.choice([name, *names]))
                outcomes.attempt("close", partial(me.close_tunnel, closed))

        return contend

    with one_engine_at_most(daemon, *spaces):
        by_clients(bus.address, map(contender, range(CLIENTS)))
        daemon.close_tunnels()
    assert "AlreadyExists" in outcomes.of("create"), str(outcomes)
    assert outcomes.of("create") & {"ok", "NoSuchTunnel"}, str(outcomes)  # closed while it waited
    assert outcomes.of("create") <= {"ok", "AlreadyExists", "NoSuchTunnel"}, str(outcomes)
    assert "ok" in outcomes.of("close") <= {"ok"} | CLOSED, str(outcomes)
    assert_nothing_is_left(client, *spaces)


# ---------------------------------------------------------------- the caller leaves


@contextlib.contextmanager
def asked(address: str, inside: Namespace, conf: str | int, **options: Any) -> Iterator[None]:
    """Somebody has asked for a tunnel, and leaves without waiting for it."""
    with Client(address) as caller, opened(inside.path) as netns, contextlib.ExitStack() as stack:
        config = stack.enter_context(memfd(conf)) if isinstance(conf, str) else conf
        body = (netns, config, options)
        caller.connection.send(caller.message(ROOT, MANAGER, "CreateTunnel", CREATE, body))
        yield


def stays(client: Client) -> bool:
    """Whether there is a tunnel whose caller's leaving came too late to matter."""
    while tunnels := client.tunnels():
        ((_, path, state),) = tunnels
        try:
            client.tunnel(path, "WaitForState", "ast", ["closed"], 250_000)
        except DBusError as error:
            if error.short_name == "Timeout" and state == "up":
                return True
    return False


MOMENTS_MS = [*range(0, 61, 3), 250, 1000, 4000]
"""A create takes 10 to 40 ms; the last ones are for busy machines."""


@LIFETIMES
def test_a_caller_leaves_at_any_moment(
    daemon: Daemon, client: Client, inside: Namespace, lifetime: str
) -> None:
    conf, stayed = Secrets().conf(), []
    for delay_ms in MOMENTS_MS:
        if delay_ms > 60 and (stayed or lifetime in ("client", "lease")):
            break
        with pipe() as (lease, _), contextlib.ExitStack() as call:
            options: dict[str, Any] = {"lifetime": ("s", lifetime)}
            if lifetime == "lease":
                options["lease"] = ("h", lease)
            call.enter_context(asked(daemon.address, inside, conf, **options))
            time.sleep(delay_ms / 1000)
            call.close()
            if lifetime != "lease" and stays(client):
                stayed.append(delay_ms)
                assert client.tunnels()[0][2] == "up"
                assert interfaces(inside.pid) == {"wg0"}
                daemon.close_tunnels()
        wait_for(lambda: client.tunnels() == [], f"undone, left after {delay_ms} ms")
        assert_nothing_is_left(client, inside)
    if lifetime in ("client", "lease"):
        assert stayed == []
    else:
        assert 0 < len(stayed) < len(MOMENTS_MS) - 3  # some creates were undone, others not


@dataclass
class Held:
    """What keeps a create in one of its phases, and by what that is seen."""

    reached: Callable[[], object]
    conf: str | int = field(default_factory=lambda: Secrets().conf())
    options: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def agent_is_stopped(daemon: Daemon, _: Stage) -> Iterator[Held]:
    agent = daemon.agent
    with stopped(agent, *children(agent)):
        yield Held(lambda: daemon.client.tunnels())


@contextlib.contextmanager
def engine_is_stopped(daemon: Daemon, _: Stage) -> Iterator[Held]:
    with stopped(*wait_for(daemon.engines, "one waits")):
        yield Held(lambda: daemon.client.tunnels())


@contextlib.contextmanager
def nobody_is_there(daemon: Daemon, stage: Stage) -> Iterator[Held]:
    conf = stage.conf(endpoint="192.0.2.99:51820")
    up = ("same", tunnel_path("same"), "up")
    yield Held(lambda: up in daemon.client.tunnels(), conf, {"wait": ("s", "handshake")})


@contextlib.contextmanager
def configuration_is_read(daemon: Daemon, _: Stage) -> Iterator[Held]:
    """From a pipe that never ends."""
    with pipe() as (config, _writer):
        name = os.readlink(f"/proc/self/fd/{config}")
        yield Held(lambda: name in open_fds(daemon.pid).values(), config)


@contextlib.contextmanager
def name_is_looked_up(daemon: Daemon, stage: Stage) -> Iterator[Held]:
    conf = stage.conf(endpoint="hangs.test:51820")
    try:
        yield Held((daemon.runtime.parent / "asked").exists, conf)
    finally:
        with opened(daemon.runtime.parent / "answer", os.O_RDWR):  # which does not block
            pass


# For sitecustomize: a resolver that gives no answer until somebody writes one.
RESOLVER = """
import os, pathlib, socket
there = pathlib.Path(os.environ["XDG_RUNTIME_DIR"]).parent
def getaddrinfo(host, *args, ask=socket.getaddrinfo, **options):
    if host == "hangs.test":
        (there / "asked").touch()
        raise OSError((there / "answer").read_text())
    return ask(host, *args, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def patient(start_daemon: Callable[..., Daemon], tmp_path: Path) -> Daemon:
    (tmp_path / "sitecustomize.py").write_text(RESOLVER)
    daemon = start_daemon(PYTHONPATH=str(tmp_path))
    os.mkfifo(daemon.runtime.parent / "answer")
    return daemon


@pytest.mark.parametrize(
    "hold",
    [
        configuration_is_read,
        name_is_looked_up,
        agent_is_stopped,
        engine_is_stopped,
        nobody_is_there,
    ],
    ids=lambda hold: hold.__name__,
)
def test_a_caller_leaves_while(
    patient: Daemon, inside: Namespace, stage: Stage, hold: Hold
) -> None:
    client = patient.client
    with hold(patient, stage) as held:
        options = {"name": ("s", "same"), **held.options}
        with asked(patient.address, inside, held.conf, **options):
            wait_for(held.reached, "it is held")
        wait_for(lambda: client.tunnels() == [], "undone", 6)
        assert_nothing_is_left(client, inside)
    # What was stopped goes on, with a request that nobody waits for.
    client.close_tunnel(client.create(inside, Secrets().conf(), interface="wg1"))
    wait_for(lambda: interfaces(inside.pid) == set(), "nothing comes of it")
    patient.assert_idle()


# ---------------------------------------------------------------- all at once on one tunnel

ADDRESSES = [f"10.9.0.{number}/24" for number in range(2, 8)]


def kill_engines(daemon: Daemon) -> None:
    """Kill them, and return when they are gone: a create would get a dying spare one."""
    engines = engines_of([daemon.pid])
    for pid in engines:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, engines)), "they are gone")


def test_a_close_ends_whatever_else_goes_on(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace
) -> None:
    outcomes, secrets, random = Outcomes(), Secrets(), Random(1)
    same = secrets.conf()
    path = tunnel_path("same")
    refused = same.replace("10.9.0.2/24", "ff02::9/64")  # by the kernel

    def later(what: str, call: Callable[[Client], object]) -> Callable[[Client], None]:
        seconds = random.choice([0, random.uniform(0, spread)])

        def act(me: Client) -> None:
            time.sleep(seconds)
            outcomes.attempt(what, lambda: call(me))

        return act

    def acts() -> Iterator[Callable[[Client], None]]:
        for address in random.sample(ADDRESSES, 3):
            other = random.choice([same, secrets.conf()]).replace("10.9.0.2/24", address)
            yield later("reconfigure", partial(reconfigure, path=path, conf=other))
        yield later("refused", lambda me: reconfigure(me, path, refused))
        yield later("restart", lambda me: me.tunnel(path, "Restart"))
        yield later("restart", lambda me: me.tunnel(path, "Restart"))
        yield later("kill", lambda _: kill_engines(daemon))
        yield later("kill", lambda _: kill_engines(daemon))
        yield later("peers", lambda me: me.peers(path))
        yield later("close", lambda me: me.close_tunnel(path))

    client.create(inside, same, name="same")
    began = time.monotonic()
    client.tunnel(path, "Restart")
    client.close_tunnel(path)
    spread = 2 * (time.monotonic() - began)  # so that some of them end before the close
    with one_engine_at_most(daemon, inside):
        for number in range(30):
            client.create(
                inside, same, name="same", lifetime=["namespace", "persistent"][number % 2]
            )
            by_clients(bus.address, list(acts()))
            assert_nothing_is_left(client, inside)
    assert outcomes.of("close") == {"ok"}, str(outcomes)
    assert "ok" in outcomes.of("restart") <= {"ok", "EngineFailed"} | CLOSED, str(outcomes)
    assert "ok" in outcomes.of("reconfigure") <= {"ok", "EngineFailed", "TunFailed"} | CLOSED, str(
        outcomes
    )
    assert "TunFailed" in outcomes.of("refused") <= {"TunFailed", "EngineFailed"} | CLOSED, str(
        outcomes
    )
    assert "ok" in outcomes.of("peers") <= {"ok", "EngineFailed"} | CLOSED, str(outcomes)
    assert "internal error" not in daemon.log
    client.close_tunnel(client.create(inside, same))  # then one waits again


def test_restarts_and_reconfigurations_all_succeed(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace
) -> None:
    secrets = Secrets()
    path = client.create(inside, secrets.conf())
    for _ in range(5):
        wanted = [secrets.conf(f"Address = {address}") for address in ADDRESSES]
        changes = [lambda me, conf=conf: reconfigure(me, path, conf) for conf in wanted]
        with one_engine_at_most(daemon, inside):
            by_clients(bus.address, [*changes, *[lambda me: me.tunnel(path, "Restart")] * 4])
        assert client.get(path, "State") == "up"
        assert set(client.get(path, "Addresses")) == inside.addresses("wg0") < set(ADDRESSES)
        assert len(client.peers(path)) == 1
