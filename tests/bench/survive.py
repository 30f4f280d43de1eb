"""How much of a kill of engine or daemon a TCP stream notices. Fails if that is too much.

The set-up is a user's: the unit that `wg4netnsctl setup` installs, in a real `systemd --user`, and
the stage's far end. Only a drop-in lifts the limit on how often systemd starts the daemon, because
the kills come faster. Each of several tunnels carries a steady stream, whose every byte is checked,
and pings, which show how long the tunnel itself was interrupted: TCP may take longer, until its
next retransmission. Meanwhile, root inspects every packet on the host.

There are several tunnels because an engine that ends within HEALTHY_TIME of its start counts as
crash-looping and is replaced only after a pause. So the engines are killed in turns, each that far
apart.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import grid, percentile, spread
from support import buses
from support import stage as stages
from support.blocks import MARKER
from support.bus import Client
from support.capture import INITIATION, Capture, Seen
from support.installed import main_pid, wait_successor
from support.journal import Journal
from support.manager import UNIT, UNLIMITED, UserManager, ctl, drop_in
from support.namespaces import Namespace
from support.processes import wait_for
from support.stage import Control, Stage
from support.stream import Stream, Times, gaps
from wg4netnsd.engine.backoff import HEALTHY_TIME

MOST_STALL = 1.0
"""Seconds that a stream may stall after its engine is killed."""
REKEY_TIME = 119.0
"""Seconds: a session is regularly replaced after 120 s, WireGuard's REKEY_AFTER_TIME."""
DISTURBED, WORK, QUIET = "a daemon's ends", "as much work", "undisturbed"
MOST_BY_CHANCE = 6
"""If two runs are alike, one has 7 or more gaps beyond all of the other's once in 2**7 times."""
STEADY = ("State", "EnginePID", "RestartCount", "ListenPort", "Interface", "CreatedUSec")


@dataclass
class Tunnel:
    """A tunnel with a stream through it."""

    client: Client
    inside: Namespace
    path: str
    stream: Stream
    port: int = 0
    times: Times = field(default_factory=lambda: Times(iter([])))

    def known(self) -> dict[str, Any]:
        """Return what no end of a daemon may change."""
        shown = self.client.get_all(self.path)
        (peer,) = self.client.peers(self.path).values()
        return {name: shown[name] for name in STEADY} | {"peer": peer["state"]}

    def links(self) -> list[tuple[int, str]]:
        """Return the namespace's interfaces by index; a recreated one has a different index."""
        return [(each["ifindex"], each["ifname"]) for each in self.inside.ip("link", "show")]

    def longest(self, start: float, end: float) -> float:
        return max(gaps(self.times.arrivals, start, end))


@dataclass(frozen=True)
class Kill:
    """A kill of an engine; `end` is when this tunnel's next kill comes."""

    tunnel: Tunnel
    at: float
    end: float

    @property
    def stall(self) -> float:
        """Return the longest gap that begins soon enough to come from this kill."""
        return self.tunnel.longest(self.at, self.at + MOST_STALL)

    @property
    def later_stall(self) -> float:
        """Return the longest later gap, which comes from the machine unless something is wrong."""
        return self.tunnel.longest(self.at + MOST_STALL, self.end)

    @property
    def outage(self) -> float:
        return max(gaps(self.tunnel.times.answers, self.at, self.at + MOST_STALL))


def run(arguments: argparse.Namespace) -> None:
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    ends = arguments.daemon_kills + arguments.restarts
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-")))
        manager = stack.enter_context(_installed(directory))
        capture = stack.enter_context(Capture(Control(stage.control), MARKER))
        capture.try_out()
        tunnels = [
            stack.enter_context(_tunnel(manager, stage, number, directory))
            for number in range(arguments.tunnels)
        ]
        ways_out = [tunnel.links() for tunnel in tunnels]
        before = [tunnel.known() for tunnel in tunnels]
        startup = _restart(manager)
        start = time.monotonic()
        moments = _end_daemons(manager, arguments.daemon_kills, arguments.restarts, 2 * startup)
        for tunnel in tunnels:
            tunnel.stream.wait_for_progress()
        length = time.monotonic() - start
        unchanged = before == [tunnel.known() for tunnel in tunnels]
        work = time.monotonic()
        _work_for_nothing([at - start for at, _ in moments], length)
        quiet = time.monotonic()
        time.sleep(length)
        kills = _kill_engines(tunnels, arguments.engine_kills)
        same_ways_out = ways_out == [tunnel.links() for tunnel in tunnels]
        sizes = [_finished(tunnel) for tunnel in tunnels]
        capture.try_out()
        seen = capture.finish()
        for tunnel in tunnels:
            tunnel.client.close_tunnel(tunnel.path)

    print(f"{len(tunnels)} tunnels, {sum(sizes) / 1e6:.0f} MB each way, {length:.0f} s of ends\n")
    verdicts = []
    if kills:
        verdicts += _judge_engine_kills(kills, seen)
    if ends:
        starts = {DISTURBED: start, WORK: work, QUIET: quiet}
        verdicts += _judge_daemon_ends(tunnels, moments, starts, length, seen)
        verdicts.append((unchanged, "the tunnels' properties are as before the daemons' ends"))
    verdicts.append((all(sizes), "each byte of every stream came back, once and in order"))
    verdicts += _judge_capture(seen, sum(sizes))
    verdicts.append((same_ways_out, f"each namespace has had {len(ways_out[0])} links: lo, wg0"))
    for kept, what in verdicts:
        print(f"{'kept  ' if kept else 'BROKEN'}  {what}")
    sys.exit(not all(kept for kept, _ in verdicts))


# ---------------------------------------------------------------- the set-up


@contextlib.contextmanager
def _installed(directory: Path) -> Iterator[UserManager]:
    """Run a user manager with the daemon's unit, without a limit on its starts."""
    journal = Journal()
    manager = UserManager(directory, buses.DAEMON)
    ctl("setup")
    try:
        with drop_in(manager, *UNLIMITED):
            yield manager
    except BaseException:
        print(*journal.messages(f"--user-unit={UNIT}"), sep="\n")
        raise
    finally:
        manager.stop()


@contextlib.contextmanager
def _tunnel(manager: UserManager, stage: Stage, number: int, directory: Path) -> Iterator[Tunnel]:
    with (
        Namespace() as inside,
        Client(manager.address) as client,
    ):
        path = client.create(
            inside, stage.conf(number, MTU="1420"), name=f"t{number}", wait="handshake"
        )
        journal = directory / f"journal{number}"
        with Stream(inside, stage.far.ipv4, stage.far.echo_port, journal) as stream:
            stream.wait_for_progress()
            yield Tunnel(client, inside, path, stream, int(client.get(path, "ListenPort")))


def _finished(tunnel: Tunnel) -> int:
    """End the stream; return how many bytes came back, 0 if they are not those that it sent."""
    try:
        size = tunnel.stream.finish()
    except AssertionError as error:
        print(f"{tunnel.path}: {error}")
        size = 0
    tunnel.times = tunnel.stream.times()
    return size


# ---------------------------------------------------------------- kills and restarts


def _restart(manager: UserManager) -> float:
    """Restart the daemon; return how long that takes, in seconds."""
    begun = time.monotonic()
    manager.systemctl("restart", UNIT)
    return time.monotonic() - begun


def _end_daemons(
    manager: UserManager, kills: int, restarts: int, most_life: float
) -> list[tuple[float, str]]:
    """End daemons at any time of their lives; return the moments, and the state at each."""
    moments = []
    pid = 0
    for _ in range(kills):
        pid = _wait_other(manager, pid)
        time.sleep(random.uniform(0, most_life))
        state = manager.property(UNIT, "ActiveState")
        moments.append((time.monotonic(), f"killed while {state}"))
        os.kill(pid, signal.SIGKILL)
    if kills:
        wait_successor(manager, pid)
    for _ in range(restarts):
        moments.append((time.monotonic(), "restarted"))
        _restart(manager)
    return moments


def _work_for_nothing(moments: Sequence[float], length: float) -> None:
    """Cause as much work as a daemon's start does, at the same moments. Otherwise, the ends of
    daemons would be compared with a machine that has nothing else to do."""
    start = time.monotonic()
    for at in moments:
        time.sleep(max(0.0, start + at - time.monotonic()))
        subprocess.run([sys.executable, "-c", "import wg4netnsd.api.service"], check=True)
    time.sleep(max(0.0, start + length - time.monotonic()))


def _wait_other(manager: UserManager, before: int) -> int:
    def other() -> int:
        pid = main_pid(manager)
        return pid if pid != before else 0

    return wait_for(other, "systemd starts the daemon again", 20)


def _kill_engines(tunnels: Sequence[Tunnel], count: int) -> list[Kill]:
    at: dict[int, list[float]] = {number: [] for number in range(len(tunnels))}
    for kill in range(count):
        number = kill % len(tunnels)
        tunnel = tunnels[number]
        before = tunnel.client.get(tunnel.path, "RestartCount")
        at[number].append(time.monotonic())
        os.kill(tunnel.client.get(tunnel.path, "EnginePID"), signal.SIGKILL)
        _wait_restarted(tunnel, before)
        tunnel.stream.wait_for_progress()
        time.sleep(random.uniform(1, 1.1) * HEALTHY_TIME / len(tunnels))
    end = time.monotonic()
    return [
        Kill(tunnels[number], *window)
        for number, moments in at.items()
        for window in zip(moments, [*moments[1:], end], strict=False)
    ]


def _wait_restarted(tunnel: Tunnel, before: int) -> None:
    wait_for(
        lambda: tunnel.client.get(tunnel.path, "RestartCount") > before,
        "the engine is replaced",
    )


# ---------------------------------------------------------------- results

Verdict = tuple[bool, str]


def _judge_engine_kills(kills: Sequence[Kill], seen: Seen) -> list[Verdict]:
    stalls = [kill.stall for kill in kills]
    outages = [kill.outage for kill in kills]
    initiations = [
        sum(
            each.type == INITIATION
            and each.client_port == kill.tunnel.port
            and kill.at <= each.at < kill.end
            for each in seen.handshakes
        )
        for kill in kills
    ]
    rows = {
        "the stream's longest gap": [1e3 * each for each in stalls],
        "the pings' longest gap": [1e3 * each for each in outages],
        "the stream's, later on": [1e3 * kill.later_stall for kill in kills],
    }
    print(spread("ms after an engine's kill", rows, "the stream's, later on"), end="\n\n")
    columns = ("p50", "max")
    counts = {
        "pings lost": [kill.tunnel.times.lost(kill.at, kill.end) for kill in kills],
        "retransmissions": [kill.tunnel.times.retransmissions(kill.at, kill.end) for kill in kills],
        "handshake initiations": initiations,
    }
    shown = {name: (percentile(each, 50), max(each)) for name, each in counts.items()}
    print(grid("a kill", columns, shown), end="\n\n")
    longest = max(*stalls, *(kill.later_stall for kill in kills))
    return [
        (
            longest <= MOST_STALL,
            f"{len(kills)} kills of an engine: the longest stall is {longest:.3f} s, "
            f"at most {MOST_STALL:g} s",
        )
    ]


def _judge_daemon_ends(
    tunnels: Sequence[Tunnel],
    moments: Sequence[tuple[float, str]],
    runs: dict[str, float],
    length: float,
    seen: Seen,
) -> list[Verdict]:
    start = runs[DISTURBED]
    all_gaps = {
        name: [
            1e3 * gap
            for tunnel in tunnels
            for gap in gaps(tunnel.times.arrivals, begun, begun + length)
        ]
        for name, begun in runs.items()
    }
    columns = ("p50", "p99", "p99.9", "max", "pings", "lost", "retrans.")
    rows = {}
    for name, begun in runs.items():
        window = (begun, begun + length)
        values = [percentile(all_gaps[name], percent) for percent in (50, 99, 99.9, 100)]
        values.append(sum(tunnel.times.pings(*window) for tunnel in tunnels))
        values.append(sum(tunnel.times.lost(*window) for tunnel in tunnels))
        values.append(sum(tunnel.times.retransmissions(*window) for tunnel in tunnels))
        rows[name] = values
    print(grid("ms, gaps of the streams", columns, rows), end="\n\n")

    ends = [at - start for at, _ in moments]
    longest = {
        name: [
            1e3 * max(tunnel.longest(begun + at, begun + end) for tunnel in tunnels)
            for at, end in zip(ends, [*ends[1:], length], strict=True)
        ]
        for name, begun in runs.items()
    }
    print(spread("ms, the longest gap from each end to the next", longest, QUIET), end="\n\n")
    worst = max(all_gaps[WORK])
    beyond = sum(each > worst for each in longest[DISTURBED])
    states = [how for _, how in moments]
    counts = ", ".join(f"{states.count(how)} {how}" for how in sorted(set(states)))
    lost = rows[DISTURBED][5]
    caused = _handshakes_caused(tunnels, seen, start, start + length)
    return [
        (
            beyond <= MOST_BY_CHANCE,
            f"{counts}: after {beyond} of them a gap beyond the {worst:.1f} ms of a run with as "
            f"much work; more than {MOST_BY_CHANCE} would not be by chance",
        ),
        (lost == 0, f"{lost:.0f} pings lost meanwhile"),
        (caused == 0, f"{caused} handshakes caused by a daemon's end"),
    ]


def _handshakes_caused(tunnels: Sequence[Tunnel], seen: Seen, start: float, end: float) -> int:
    """Count the handshakes that come before a session is old enough to be replaced."""
    caused = 0
    for tunnel in tunnels:
        times = [
            each.at
            for each in seen.handshakes
            if each.type == INITIATION and each.client_port == tunnel.port
        ]
        for before, at in itertools.pairwise(times):
            age = at - before
            if start <= at < end and age < REKEY_TIME:
                caused += 1
                print(f"{tunnel.path}: {at - start:.3f} s after the first end, a handshake begins")
                print(f"{age:.3f} s after the one before")
    return caused


def _judge_capture(seen: Seen, size: int) -> list[Verdict]:
    encrypted = sum(seen.encrypted.values())
    tried = {why: seen.tried(why) for why in ("marker", "inner address")}
    for leak in seen.leaks[:10]:
        print(leak)
    return [
        (
            seen.found == sum(tried.values()),
            f"{seen.found - sum(tried.values())} packets in clear, of "
            f"{sum(seen.packets.values())} on the host's {len(seen.packets)} active interfaces",
        ),
        (
            all(count >= 2 for count in tried.values()) and encrypted > 2 * size,
            f"the capture works: it has found what it was tried with {tried}, "
            f"and {encrypted / 1e6:.0f} MB encrypted",
        ),
        (seen.missed == 0, f"{seen.missed} packets came too fast for it"),
    ]
