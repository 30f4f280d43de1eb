"""Random things done to tunnels from a few threads at once, for as long as one likes."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from support.bus import NAME, Client, DBusError
from support.crowd import CLOSED, Outcomes, at_once, interfaces
from support.fds import memfd
from support.installed import main_pid, wait_successor
from support.manager import UNIT, UserManager
from support.namespaces import Namespace
from support.processes import open_fds, program, wait_for
from support.rules import MatchRules
from support.stage import Stage
from wg4netnsd.names import tunnel_path

AWAY = {"NoReply"}
"""The daemon was killed while it had the call."""

DOCUMENTED = {
    "create": {"AlreadyExists", "NoSuchTunnel", "TunFailed", "EngineFailed"} | AWAY,
    "close": CLOSED | AWAY,
    "restart": {"EngineFailed", *CLOSED} | AWAY,
    "reconfigure": {"EngineFailed", "TunFailed", *CLOSED} | AWAY,
    "peers": {"EngineFailed", *CLOSED} | AWAY,
    "describe": AWAY,
}
"""What may come of each call besides "ok", as org.wg4netns1(5) has it."""

WEIGHTS = {
    "create": 10,
    "close": 4,
    "restart": 2,
    "reconfigure": 4,
    "peers": 3,
    "describe": 1,
    "kill engine": 2,
    "end namespace": 1,
    "end lease": 2,
    "link down": 1,
    "link renamed": 1,
    "link deleted": 1,
    "ping": 6,
}
KILL_DAEMON = 1


@dataclass
class Place:
    """A namespace, one after the other, and the tunnel that is in it if there is one."""

    number: int
    inside: Namespace = field(default_factory=Namespace)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Who ends the namespace, or is about to go in, has it."""
    leases: list[int] = field(default_factory=list)
    """Our ends of pipes."""

    @property
    def path(self) -> str:
        return tunnel_path(f"soak{self.number}")

    def end_leases(self) -> None:
        while self.leases:
            with contextlib.suppress(IndexError):  # another thread was faster
                os.close(self.leases.pop())


class Soak:
    def __init__(self, manager: UserManager, stage: Stage, places: int, seed: int) -> None:
        self.manager = manager
        self.stage = stage
        self.places = [Place(number) for number in range(places)]
        self.outcomes = Outcomes()
        self.seed = seed
        self._runs = 0
        self._killing = threading.Lock()

    def run(self, seconds: float, threads: int, *, kill_daemon: bool) -> None:
        """Return when all has been closed again."""
        self._runs += 1
        weights = WEIGHTS | ({"kill daemon": KILL_DAEMON} if kill_daemon else {})
        deadline = time.monotonic() + seconds

        def work(number: int) -> None:
            random = Random(f"{self.seed} {self._runs} {number}")
            with Client(self.manager.address) as client:
                while time.monotonic() < deadline:
                    (what,) = random.choices(list(weights), list(weights.values()))
                    act: Callable[..., None] = getattr(self, "_" + what.replace(" ", "_"))
                    act(client, random.choice(self.places), random)

        at_once([partial(work, number) for number in range(threads)], seconds + 90)
        self._close_all()

    def _close_all(self) -> None:
        for place in self.places:
            place.end_leases()
        with Client(self.manager.address) as client:
            for name, path, _ in client.tunnels():
                if name.startswith("soak"):
                    self.outcomes.attempt("close", partial(client.close_tunnel, path))
            wait_for(lambda: not any(n.startswith("soak") for n, *_ in client.tunnels()), "closed")
            # With this, a new engine waits, should the one that did have been killed.
            client.close_tunnel(client.create(self.places[0].inside, self.stage.conf(0)))
        assert [interfaces(place.inside.pid) for place in self.places] == [set()] * len(self.places)

    def close(self) -> None:
        for place in self.places:
            place.end_leases()
            place.inside.close()

    def assert_documented(self) -> None:
        for what, errors in DOCUMENTED.items():
            assert self.outcomes.of(what) <= {"ok"} | errors, str(self.outcomes)

    # ------------------------------------------------------------ calls

    def _create(self, client: Client, place: Place, random: Random) -> None:
        lifetime = random.choice(["namespace", "namespace", "persistent", "client", "lease"])
        options: dict[str, Any] = {"name": f"soak{place.number}", "lifetime": lifetime}
        lease = -1
        if lifetime == "lease":
            lease, ours = os.pipe()
            options["lease"] = ("h", lease)
            place.leases.append(ours)
        conf = self.stage.conf(place.number)
        with place.lock:
            netns = Opened(place.inside.open())
        with netns:
            self.outcomes.attempt("create", lambda: client.create(netns, conf, **options))
        if lease >= 0:
            os.close(lease)

    def _close(self, client: Client, place: Place, _: Random) -> None:
        self.outcomes.attempt("close", lambda: client.close_tunnel(place.path))

    def _restart(self, client: Client, place: Place, _: Random) -> None:
        self.outcomes.attempt("restart", lambda: client.tunnel(place.path, "Restart"))

    def _reconfigure(self, client: Client, place: Place, random: Random) -> None:
        conf = self.stage.conf(place.number, MTU=str(random.randint(1280, 1420)))
        with memfd(conf) as config:
            change = partial(client.tunnel, place.path, "Reconfigure", "ha{sv}", config, {})
            self.outcomes.attempt("reconfigure", change)

    def _peers(self, client: Client, place: Place, _: Random) -> None:
        self.outcomes.attempt("peers", lambda: client.peers(place.path))

    def _describe(self, client: Client, _place: Place, _: Random) -> None:
        self.outcomes.attempt("describe", lambda: client.manager("Describe"))

    # ------------------------------------------------------------ what else happens

    def _kill_engine(self, client: Client, place: Place, random: Random) -> None:
        """Anyone's but that of `kept`, which is to stay up."""
        with contextlib.suppress(DBusError, ProcessLookupError):  # no daemon; it has ended
            kept = client.get(tunnel_path("kept"), "EnginePID")
            engines = {p for p in self.manager.processes(UNIT) if program(p) == "wireguard-go"}
            if others := sorted(engines - {kept}):
                os.kill(random.choice(others), signal.SIGKILL)
                self._count("kill engine")

    def _kill_daemon(self, _client: Client, _place: Place, _: Random) -> None:
        if self._killing.acquire(blocking=False):
            with contextlib.ExitStack() as stack:
                stack.callback(self._killing.release)
                if pid := main_pid(self.manager):
                    self._count("kill daemon")
                    os.kill(pid, signal.SIGKILL)
                    wait_successor(self.manager, pid)

    def _end_namespace(self, _client: Client, place: Place, _: Random) -> None:
        with place.lock:
            self._count("end namespace")
            ended, place.inside = place.inside, Namespace()
            ended.close()

    def _end_lease(self, _client: Client, place: Place, _: Random) -> None:
        self._count("end lease")
        place.end_leases()

    def _link_down(self, _client: Client, place: Place, _: Random) -> None:
        self._owner("link down", place, "ip", "link", "set", "wg0", "down")

    def _link_renamed(self, _client: Client, place: Place, _: Random) -> None:
        self._owner("link renamed", place, "ip", "link", "set", "wg0", "name", "other")

    def _link_deleted(self, _client: Client, place: Place, _: Random) -> None:
        self._owner("link deleted", place, "ip", "link", "delete", "wg0")

    def _ping(self, _client: Client, place: Place, _: Random) -> None:
        """The reply's data is compared by ping."""
        self._owner("ping", place, "ping", "-n", "-c1", "-W1", self.stage.far.ipv4)

    def _owner(self, what: str, place: Place, *command: str) -> None:
        with place.lock:
            done = place.inside.run(*command)
        assert "wrong data" not in done.stdout, done.stdout
        self._count(what, "in vain" if done.returncode else "ok")

    def _count(self, what: str, how: str = "ok") -> None:
        self.outcomes.counts[what, how] += 1


class Opened:
    """A descriptor of a namespace that may end meanwhile."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def open(self) -> int:
        return os.dup(self._fd)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


# ---------------------------------------------------------------- what must be as it was


class Holdings(NamedTuple):
    """What there is of the daemon."""

    fds: int
    processes: int
    stored: int
    files: int
    rules: int


def holdings(manager: UserManager, client: Client, rules: MatchRules) -> Holdings:
    """`rules`: of the manager's bus, from before there was a daemon."""
    pid = main_pid(manager)
    return Holdings(
        fds=len(open_fds(pid)),
        processes=len(manager.processes(UNIT)),
        stored=int(manager.property(UNIT, "NFileDescriptorStore")),
        files=sum(1 for _ in (manager.runtime / "wg4netnsd").rglob("*")),
        rules=rules.of(client.bus("GetNameOwner", "s", NAME)).total(),
    )


def settled(look: Callable[[], Holdings]) -> Holdings:
    """What it has once that no longer changes: a daemon that took over still has some to let go."""

    def steady() -> Holdings | None:
        seen = {look() for _ in range(5)}
        return seen.pop() if len(seen) == 1 else None

    return wait_for(steady, "it has taken over")


def assert_settles(manager: UserManager, look: Callable[[], Holdings], wanted: Holdings) -> None:
    try:
        wait_for(lambda: look() == wanted, "as it was")
    except AssertionError:
        fds = sorted(open_fds(main_pid(manager)).values())
        programs = sorted(map(program, manager.processes(UNIT)))
        now = look()
        raise AssertionError(f"{wanted} became {now}: {fds}, {programs}") from None


def memory_kib(manager: UserManager) -> int:
    """Of the daemon alone: what it shares with others is not its growth."""
    rollup = Path(f"/proc/{main_pid(manager)}/smaps_rollup").read_text()
    (pss,) = (line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(pss.split()[1])
