"""The daemon: arguments, then startup, running, shutdown.

main → Service → Manager → Tunnel → netns, engine, uapi
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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wg4netnsd import __version__, agent, journal, systemd

if TYPE_CHECKING:
    from wg4netnsd.manager import Manager

log = logging.getLogger(__name__)

EXIT_SUCCESS: Final = 0
EXIT_FAILURE: Final = 1
EXIT_NO_BUS: Final = 69  # EX_UNAVAILABLE of sysexits(3)


class StartupError(Exception):
    """Why the daemon can't start, for people."""


def main() -> None:
    """Entry point of `wg4netnsd`."""
    arguments = _parse_arguments()
    journal.set_up(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        _refuse_wrong_places()
        _set_limits()
        # First of all that runs: setns() needs a process of one thread, and a small one forks fast.
        the_agent = agent.fork()
        with _runtime_directory(arguments.runtime_dir) as directory:
            status = asyncio.run(_serve(the_agent, arguments.engine, directory))
        the_agent.end()
        sys.exit(status)
    except StartupError as error:
        log.critical("%s", error)
        sys.exit(EXIT_FAILURE)


async def _serve(the_agent: agent.Agent, binary: Path | None, directory: Path) -> int:
    """From the first call to the last; returns the exit status."""
    # Only now: the agent, and with it every fork of it, stays as small as it was.
    from wg4netnsd import engine
    from wg4netnsd.bus import BusGone
    from wg4netnsd.service import Service

    stop = _stop_on_signals()
    service = Service(the_agent, binary or engine.BINARY, directory)
    try:
        bus = await service.start()
    except BusGone as error:
        log.critical("%s", error)
        return EXIT_NO_BUS
    gc.freeze()  # modules and classes stay: no collection need look at them again
    host = _watch_host(service.manager)
    systemd.notify_ready()
    log.info("ready")

    ends = {
        asyncio.ensure_future(bus.wait_gone()): EXIT_NO_BUS,
        asyncio.ensure_future(_wait_dead(the_agent.pid)): EXIT_FAILURE,
        stop: EXIT_SUCCESS,
    }
    status = await _first_end(ends)

    systemd.notify_stopping("closing all tunnels")
    host.close()
    await service.manager.close_all("the daemon is ending")
    await bus.close()
    log.info("stopped")
    return status


async def _first_end(ends: dict[asyncio.Future[str], int]) -> int:
    """Wait for the first of several ends, each with its exit status; they return their reason."""
    done, others = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    end = done.pop()
    log.log(logging.CRITICAL if ends[end] else logging.INFO, "%s", end.result())
    return ends[end]


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
        help="where the engines' sockets go (default: $RUNTIME_DIRECTORY, which systemd sets, "
        "else $XDG_RUNTIME_DIR/wg4netnsd); removed at the end",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        metavar="PATH",
        help="the wireguard-go to run (default: the one that came with wg4netnsd; it has to be "
        "patched as that one is)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is for debugging")
    parser.add_argument("--version", action="version", version=f"wg4netnsd {__version__}")
    return parser.parse_args()


def _refuse_wrong_places() -> None:
    """In a child user namespace, NS_GET_USERNS on a caller's fd gives EPERM.

    That is also where a user unit with PrivateUsers= or a directive that implies it would put us.
    """
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
        raise StartupError(
            "/proc/self/uid_map: this is a child user namespace: expected the host's"
        )


def _set_limits() -> None:
    """Eight fds a tunnel, and no core file of a process that holds keys."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # 1, not 0: a piped core_pattern ignores 0 and takes 1 for "none" (fs/coredump.c).
    core = 1 if hard else 0
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))


@contextlib.contextmanager
def _runtime_directory(chosen: Path | None) -> Iterator[Path]:
    """Our own directory, empty, and ours alone while we run."""
    path = chosen or _default_runtime_directory()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_sockets(path)  # of a daemon that was killed
        if any(path.iterdir()):
            raise StartupError(f"{path}: not empty: expected a directory for wg4netnsd alone")
    except BlockingIOError:
        raise StartupError(f"{path}: another wg4netnsd uses it; see --runtime-dir") from None
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from None
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()
        os.close(lock)


def _remove_sockets(directory: Path) -> None:
    """Remove what a tunnel makes: a directory with a socket in it. Nothing else is ours."""
    for socket in directory.glob("*/*.sock"):
        if socket.is_socket():
            socket.unlink()
            with contextlib.suppress(OSError):
                socket.parent.rmdir()


def _default_runtime_directory() -> Path:
    if ours := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(ours)
    if everyones := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(everyones) / "wg4netnsd"
    raise StartupError("XDG_RUNTIME_DIR is not set; see --runtime-dir")


# ---------------------------------------------------------------- running


def _watch_host(manager: Manager) -> contextlib.ExitStack:
    """Tell the tunnels when the host's network is another; until closed."""
    from wg4netnsd.hostnet import HostNetwork
    from wg4netnsd.suspend import Suspend

    def resumed(why: str) -> None:
        manager.network_moved(why)  # first: by the clock, sessions have ended meanwhile
        manager.clock_moved()

    watching = contextlib.ExitStack()
    for watch in (
        lambda: HostNetwork(manager.network_moved),
        lambda: Suspend(resumed, manager.clock_moved),
    ):
        try:
            watching.callback(watch().close)
        except OSError as error:  # tunnels go on, by the protocol's timers alone
            log.error("the host's network is not watched: %s", error)
    return watching


def _stop_on_signals() -> asyncio.Future[str]:
    """A future that SIGTERM and SIGINT resolve; a second one changes nothing."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


async def _wait_dead(agent_pid: int) -> str:
    """Return when our child has ended."""
    ended = asyncio.Event()
    pidfd = os.pidfd_open(agent_pid)
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
    return "the agent has died"
