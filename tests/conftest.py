"""The fixtures. `scripts/test` builds the stage they stand on: tests/stage/world draws it."""

# ruff: noqa: E402, pytest rewrites assertions only of what is imported later

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support")

from support import buses, depth, order
from support import manager as managers
from support import stage as stages
from support.bus import Bus, Client
from support.daemon import Daemon
from support.installed import assert_nothing_left, files
from support.leaks import SESSION
from support.manager import UNIT, UNLIMITED, UserManager, ctl, drop_in
from support.namespaces import MakeNamespace, Namespace
from support.processes import of_program, wait_for
from support.shared import Share
from support.stage import Control, Stage

ROOT = Path(__file__).parent
NEED_NOTHING = [ROOT / "unit", ROOT / "static"]
"""What does without a stage, and so runs as any user."""


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "test in full depth: all of what is repeated, random examples, ten minutes of soak"
    parser.addoption("--long", action="store_true", help=help)
    help = "how long tests/faults/test_soak.py goes on (default: 30, with --long 600)"
    parser.addoption("--soak", type=float, metavar="SECONDS", help=help)
    parser.addoption("--soak-seed", type=int, metavar="N", help="what it did with this, it repeats")
    for end in ("--queue", "--results"):
        help = "a descriptor that tests/stage/suite.py has passed"
        parser.addoption(end, type=int, metavar="FD", help=help)


def pytest_configure(config: pytest.Config) -> None:
    depth.choose(config.getoption("--long"))
    if (queue := config.getoption("--queue")) is not None:
        config.pluginmanager.register(Share(queue, config.getoption("--results")))
    SESSION.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0 and not all(set(item.path.parents) & set(NEED_NOTHING) for item in items):
        pytest.exit(
            "the suite tests what an ordinary user can do and does not run as root: "
            "scripts/test makes such a user and runs it as that",
            returncode=3,
        )
    order.sort(items)


@pytest.fixture(scope="session")
def stage() -> Stage:
    """The far end, identities to reach it with, and the other buses."""
    found = stages.read()
    if found is None:
        pytest.skip("needs the stage: run it by scripts/test")
    return found


@pytest.fixture
def control(stage: Stage) -> Iterator[Control]:
    """Stops, starts and moves the moving far end, changes the host's networks and names."""
    asked = Control(stage.control)
    yield asked
    asked.reset()


@pytest.fixture
def namespace() -> Iterator[MakeNamespace]:
    """Makes network namespaces: namespace(), namespace(nested=True)."""
    with ExitStack() as made:
        yield lambda nested=False: made.enter_context(Namespace(nested))


@pytest.fixture
def inside(namespace: MakeNamespace) -> Namespace:
    """The one network namespace of a test that needs no other."""
    return namespace()


@pytest.fixture(scope="module")
def bus_program(request: pytest.FixtureRequest) -> str:
    """The program that all buses run: dbus-daemon, unless a test is marked `buses.ON_BOTH`."""
    return str(getattr(request, "param", buses.DAEMON))


@pytest.fixture(scope="module")
def directory(bus_program: str) -> Iterator[Path]:
    """What belongs to a bus. A short path, as a socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="wg-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def bus(directory: Path, bus_program: str) -> Iterator[Bus]:
    """A session bus without systemd."""
    started = Bus(directory, program=bus_program, counts_rules=True)
    yield started
    started.close()


@pytest.fixture
def client(bus: Bus) -> Iterator[Client]:
    """A connection to the bus, new for each test."""
    with Client(bus.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def running_daemon(bus: Bus, directory: Path) -> Iterator[Daemon]:
    """One daemon for a module's tests; tests ask for `daemon`."""
    started = Daemon(bus, directory)
    yield started
    started.stop()
    wait_for(lambda: not of_program("wireguard-go"), "no engine outlives its daemon")


@pytest.fixture
def daemon(running_daemon: Daemon, client: Client) -> Iterator[Daemon]:
    """The daemon. Whatever the test does with it, it must be back to idle afterwards: before its
    client leaves, with whom the daemon forgets what it has kept for that."""
    yield running_daemon
    running_daemon.assert_idle()


@pytest.fixture
def start_daemon(bus_program: str) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of the test's own, each on its own bus: start_daemon(*arguments, **env)."""
    with ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> Daemon:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-")))
            own_bus = Bus(path, program=bus_program, counts_rules=True)
            stack.callback(own_bus.close)
            started = Daemon(own_bus, path, *arguments, **environment)
            stack.callback(started.stop_if_running)
            return started

        yield start


@pytest.fixture
def quick(start_daemon: Callable[..., Daemon], stage: Stage) -> Daemon:
    """A daemon whose engines have short timers."""
    return start_daemon("--engine", stage.short_engine)


@pytest.fixture(scope="module")
def user_manager(stage: Stage, bus_program: str) -> Iterator[UserManager]:
    with managers.user_manager(bus_program) as started:
        yield started


@pytest.fixture
def installed(user_manager: UserManager) -> Iterator[UserManager]:
    """The user manager, after `wg4netnsctl setup`. What a test starts does not outlive it."""
    ctl("setup")
    yield user_manager
    user_manager.systemctl("stop", UNIT)
    assert_nothing_left(user_manager)
    ctl("setup", "--remove")
    assert files() == {}


@pytest.fixture
def unlimited(installed: UserManager) -> Iterator[UserManager]:
    """Started again however often it is killed."""
    with drop_in(installed, *UNLIMITED):
        yield installed
