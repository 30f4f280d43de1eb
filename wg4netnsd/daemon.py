"""The daemon: read the arguments, start, run, shut down.

main → Service → Manager → Tunnel → namespace, engine, peers
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wg4netnsd import __version__
from wg4netnsd.agent import server as agent_server
from wg4netnsd.aio.tasks import log_failure
from wg4netnsd.files import server as files_server
from wg4netnsd.kernel import signals
from wg4netnsd.systemd import fdstore, journal, notify, unit

if TYPE_CHECKING:
    from wg4netnsd.agent.client import Agent
    from wg4netnsd.files.client import FileProcesses
    from wg4netnsd.systemd.fdstore import InheritedFds
    from wg4netnsd.tunnel.manager import Manager

log = logging.getLogger(__name__)

EXIT_SUCCESS: Final = 0
EXIT_FAILURE: Final = 1
EXIT_NO_BUS: Final = 69  # EX_UNAVAILABLE of sysexits(3)
EXIT_CONFIG: Final = 78  # EX_CONFIG: systemd should not start it again

CHECK_TIME: Final = 5.0
"""Seconds between two checks of the engines."""
LOCK_TIME: Final = 10.0
"""Seconds to wait for an earlier daemon to let go of the runtime directory. So long that systemd's
limit of 10 starts in 60 s is not reached, and so no end of the tunnels."""
BUS_TIME: Final = 5.0
"""Seconds that systemd gets to start the bus again."""


class StartupError(Exception):
    """A reason why the daemon can't start."""

    status = EXIT_CONFIG


class TransientError(StartupError):
    """A reason that may pass, so that systemd should try again."""

    status = EXIT_FAILURE


def main() -> None:
    """Run `wg4netnsd`."""
    arguments = _parse_arguments()
    journal.set_up(logging.DEBUG if arguments.verbose else logging.INFO)
    signals.reset()
    try:
        _refuse_child_userns()
        _set_limits()
        inherited = fdstore.receive_fds()
        # Forked first: setns() needs a single-threaded process, and a small one forks fast.
        forked_agent, forked_files = agent_server.fork(), files_server.fork()
        from wg4netnsd.agent.client import Agent
        from wg4netnsd.files.client import FileProcesses

        agent, files = Agent(*forked_agent), FileProcesses(*forked_files)
        with _runtime_directory(arguments.runtime_dir, inherited.keys()) as directory:
            status = asyncio.run(_serve(agent, files, arguments.engine, directory, inherited))
        agent.end()
        files.end()
        sys.exit(status)
    except StartupError as error:
        log.critical("%s", error)
        sys.exit(error.status)


async def _serve(
    agent: Agent,
    files: FileProcesses,
    binary: Path | None,
    directory: Path,
    inherited: Mapping[str, InheritedFds],
) -> int:
    """Serve the bus until one of the ends in `ends`; return the exit status."""
    # Imported only now, so that the agent and its forks stay small.
    from wg4netnsd.api.service import Service
    from wg4netnsd.bus.client import wait_for_bus
    from wg4netnsd.bus.connection import BusGone
    from wg4netnsd.bus.server import NameTaken
    from wg4netnsd.engine import engine
    from wg4netnsd.tunnel import restore

    stop = _stop_on_signals()
    agent_dead = asyncio.create_task(_wait_dead(agent.pid, "the agent"))
    files_dead = asyncio.create_task(_wait_dead(files.pid, "the parent of the file processes"))
    files.keep_spare()
    await restore.kill_strays(inherited)
    service = Service(agent, files, binary or engine.BINARY, directory)
    try:
        server = await service.start(inherited)
    except BusGone as error:
        log.critical("%s", error)
        return EXIT_CONFIG if isinstance(error, NameTaken) else EXIT_NO_BUS
    gc.freeze()  # keep modules and classes out of every later collection
    host_watch = _watch_host(service.manager)
    checks = asyncio.create_task(_run_checks(service.manager))
    notify.ready()
    log.info("ready")
    if not notify.is_supervised():
        log.info("not started by systemd: tunnels end with this process")

    ends = {
        asyncio.ensure_future(server.wait_gone()): EXIT_NO_BUS,
        agent_dead: EXIT_FAILURE,
        files_dead: EXIT_FAILURE,
        stop: EXIT_SUCCESS,
    }
    status = await _first_end(ends)

    checks.cancel()
    host_watch.close()
    if status == EXIT_NO_BUS and notify.is_supervised():
        # If we ended before the bus's own process, systemd would connect to that dead bus and do
        # nothing else for 90 s (v252: manager_recheck_dbus(), then sd_bus_flush()).
        await wait_for_bus(BUS_TIME)
    if handing_over := await _has_successor(status):
        notify.stopping("the next daemon adopts the tunnels")
    else:
        notify.stopping("closing all tunnels")
        await service.manager.close_all("the daemon is ending")
    await server.close(patiently=not handing_over)
    log.info("stopped")
    return status


async def _first_end(ends: dict[asyncio.Future[str], int]) -> int:
    """Wait for the first of `ends`, log the reason it returns, and return its exit status."""
    done, others = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    end = done.pop()
    log.log(logging.CRITICAL if ends[end] else logging.INFO, "%s", end.result())
    return ends[end]


async def _has_successor(status: int) -> bool:
    """Return whether systemd will start another daemon, and hold our fds until then.

    After a failure it will, because the unit has Restart=on-failure. If systemd then gives up, it
    drops the fds, which ends the engines. After SIGTERM it depends on systemd's current job.
    """
    from wg4netnsd.bus.client import get_property
    from wg4netnsd.bus.connection import BusGone

    if not notify.is_supervised() or status != EXIT_SUCCESS:
        return notify.is_supervised()
    try:
        job, path = await get_property(*unit.dbus_object(), "Job")
        return bool(job) and await get_property(*unit.job_object(path), "JobType") == "restart"
    except BusGone as error:
        log.warning("can't tell whether this is a restart, so tunnels stay: %s", error)
        return True


# ---------------------------------------------------------------- startup


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="wg4netnsd",
        description="WireGuard for rootless network namespaces, driven over the session bus. "
        "Usually started by D-Bus activation; see wg4netnsd(1) and org.wg4netns1(5).",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        help="directory for the engines' sockets and the tunnels' resolv.conf, removed at the end "
        "(default: $RUNTIME_DIRECTORY, which systemd sets, else $XDG_RUNTIME_DIR/wg4netnsd)",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        metavar="PATH",
        help="the wireguard-go to run, with wg4netnsd's patch (default: the one installed with "
        "wg4netnsd)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also log debug messages")
    parser.add_argument("--version", action="version", version=f"wg4netnsd {__version__}")
    return parser.parse_args()


def _refuse_child_userns() -> None:
    """Refuse to run in a child user namespace, where NS_GET_USERNS on a caller's fd gives EPERM.

    PrivateUsers= in the unit, or a directive that implies it, would put the daemon into one.
    """
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
        raise StartupError(
            "/proc/self/uid_map: this is a child user namespace: expected the host's"
        )


def _set_limits() -> None:
    """Allow enough fds for all tunnels, and prevent core files, which would hold keys."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # 1, not 0: with a piped core_pattern, 0 is ignored and 1 means "none" (fs/coredump.c).
    core = 1 if hard else 0
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))


@contextlib.contextmanager
def _runtime_directory(chosen: Path | None, tunnels: Collection[str]) -> Iterator[Path]:
    """Create and lock the runtime directory; of earlier tunnels, only those in `tunnels` stay."""
    path = (chosen or _default_runtime_directory()).absolute()  # clients see it, in ResolvConf
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _lock(lock)
        if not os.path.samestat(os.fstat(lock), path.stat()):  # replaced while we waited
            raise BlockingIOError
        _remove_leftovers(path, tunnels)
        if any(each.name not in tunnels for each in path.iterdir()):
            raise StartupError(f"{path}: not empty: expected a directory for wg4netnsd alone")
    except BlockingIOError:
        used = f"{path}: another wg4netnsd uses it; see --runtime-dir"
        raise (TransientError if notify.is_supervised() else StartupError)(used) from None
    except OSError as error:
        raise TransientError(f"{path}: {error.strerror}") from None
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()
        os.close(lock)


def _lock(directory: int) -> None:
    """Lock a directory, if need be when an earlier daemon has ended. Raises BlockingIOError."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not notify.is_supervised():
            raise
        log.warning("an earlier daemon has not let go of its runtime directory: waiting for that")
        with signals.alarm(LOCK_TIME, BlockingIOError):
            fcntl.flock(directory, fcntl.LOCK_EX)


def _remove_leftovers(directory: Path, tunnels: Collection[str]) -> None:
    """Remove the files of tunnels that a killed daemon has left, except those in `tunnels`."""
    from wg4netnsd.tunnel.restore import remove_tunnel_files

    for path in directory.iterdir():
        if path.name not in tunnels and path.is_dir():
            remove_tunnel_files(path)


def _default_runtime_directory() -> Path:
    if ours := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(ours)
    if everyones := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(everyones) / "wg4netnsd"
    raise StartupError("XDG_RUNTIME_DIR is not set; see --runtime-dir")


# ---------------------------------------------------------------- running


async def _run_checks(manager: Manager) -> None:
    """Check the engines, and tell systemd's watchdog that the event loop runs."""
    timeout = notify.watchdog_time()
    period = min(CHECK_TIME, timeout / 3) if timeout else CHECK_TIME
    while True:
        notify.alive()
        check = asyncio.create_task(manager.check_engines())  # may take longer than a period
        check.add_done_callback(log_failure)
        await asyncio.sleep(period)


def _watch_host(manager: Manager) -> contextlib.ExitStack:
    """Tell the tunnels of network changes and suspends, until the result is closed."""
    from wg4netnsd.host.network import HostNetwork
    from wg4netnsd.host.suspend import SuspendWatch

    def resumed(why: str) -> None:
        manager.network_changed(why)  # first, while the sessions still count as in use
        manager.clock_jumped()

    watches = contextlib.ExitStack()
    for watch in (
        lambda: HostNetwork(manager.network_changed, manager.routes_changed),
        lambda: SuspendWatch(resumed, manager.clock_jumped),
    ):
        try:
            watches.callback(watch().close)
        except OSError as error:  # tunnels go on with WireGuard's own timers
            log.error("the host's network is not watched: %s", error)
    return watches


def _stop_on_signals() -> asyncio.Future[str]:
    """Return a future that SIGTERM resolves, and SIGINT unless it is ignored.

    A second signal changes nothing.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        if not signals.is_ignored(number):
            loop.add_signal_handler(number, on_signal, number)
    return stop


async def _wait_dead(pid: int, name: str) -> str:
    """Return when a child of ours has ended."""
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
    return f"{name} has died"
