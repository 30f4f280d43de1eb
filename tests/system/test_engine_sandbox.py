"""What an engine can't do, what nobody can do to it, and that it does its work all the same.

sandbox_linux_test.go in wireguard-go/src tries what its own threads may do.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support import engines
from support.bus import Client
from support.configs import Secrets
from support.daemon import Daemon
from support.engines import ask, connect, serve_uapi, waiting_engine
from support.namespaces import MakeNamespace, ping
from support.processes import status, wait_for
from support.stage import Stage
from support.transfer import iperf3
from support.tunnels import reconfigure
from wg4netnsd.engine.engine import BINARY

SYS_PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}[os.uname().machine]
SYS_PIDFD_GETFD = 438
PTRACE_SEIZE = 0x4206
LIBC = ctypes.CDLL(None, use_errno=True)


def is_confined(pid: int) -> bool:
    """Whether all its threads are; a filter of system calls is the last step of it."""
    shown = [status(thread) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return all((each["NoNewPrivs"], each["Seccomp"]) == ("1", "2") for each in shown)


@pytest.fixture
def waiting() -> Iterator[int]:
    """The process id of an engine that has nothing to do yet."""
    process, handover, events = waiting_engine(BINARY)
    with process, handover, events:
        wait_for(lambda: is_confined(process.pid), "it has confined itself")
        yield process.pid
        process.kill()


# ---------------------------------------------------------------- what it does not prevent


@pytest.mark.parametrize(("identity", "family"), [(0, "v4"), (1, "v6")])
def test_a_confined_engine_does_its_work(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    identity: int,
    family: str,
) -> None:
    inside = namespace()
    endpoint = {"v4": stage.far.endpoint_v4, "v6": stage.far.endpoint_v6}[family]
    path = client.create(inside, stage.conf(identity, endpoint), wait="handshake")
    pid = client.get(path, "EnginePID")
    assert is_confined(pid)
    port = client.get(path, "ListenPort")
    for _ in range(3):
        port = 40000 + (port + 1) % 20000
        conf = stage.conf(identity, endpoint, ListenPort=str(port))
        reconfigure(client, path, conf)  # brings other UDP sockets
        assert client.get(path, "ListenPort") == port
        for address in (stage.far.ipv4, stage.far.ipv6):
            ping(inside, address)
        # Enough for some garbage collections.
        iperf3(inside, stage.far.ipv4, "--bytes=50M")
        iperf3(inside, stage.far.ipv6, "--bytes=50M", "--reverse")
    assert client.get(path, "EnginePID") == pid
    assert is_confined(pid), "a thread that came later is not"
    client.close_tunnel(path)


def test_its_log_tells_the_local_time(tmp_path: Path) -> None:
    """Whose file can't be opened any more."""
    zone = tmp_path / "zone"
    east = struct.pack(">6I", 0, 0, 0, 0, 1, 4) + struct.pack(">iBB", 5 * 3600, 0, 0) + b"EAST"
    zone.write_bytes(b"TZif" + bytes(16) + east)
    process, handover, events = waiting_engine(BINARY, TZ=str(zone))
    with process, handover, events:
        serve_uapi(handover, tmp_path / "uapi")
        say_nonsense(tmp_path / "uapi")
        process.terminate()
        output = process.communicate(timeout=10)[0].decode()
    said = datetime.strptime(output[:26], "ERROR: %Y/%m/%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs(said - timedelta(hours=5) - datetime.now(UTC)) < timedelta(minutes=5)


# ---------------------------------------------------------------- what it has


def test_it_has_the_descriptors_that_it_needs(
    daemon: Daemon, client: Client, namespace: MakeNamespace, waiting: int
) -> None:
    """No file of ours, no bus, no directory, no inotify that waits for its socket's end."""
    ready = {
        "/dev/null": 1,  # stdin
        "pipe": 2 + 1,  # stdout and stderr, events
        "socket": 1,  # handover
        "anon_inode:[eventpoll]": 1,
        "anon_inode:[eventfd]": 1,
    }
    wait_for(lambda: kinds(waiting) == ready, "ready for its socket")
    path = client.create(namespace(), Secrets().conf())
    # UDP over IPv4 and IPv6, each as handed and as used; UAPI; rtnetlink, and a pipe that ends its
    # reader.
    at_work = Counter(ready) + Counter({"/dev/net/tun": 1, "socket": 4 + 1 + 1, "pipe": 2})
    pid = client.get(path, "EnginePID")
    wait_for(lambda: kinds(pid) == at_work, "only what it needs")  # a connection is closing
    client.close_tunnel(path)


def kinds(pid: int) -> Counter[str]:
    links = engines.descriptors(pid).values()
    return Counter(re.sub(r":\[\d+\]$", "", link) for link in links)


def test_its_environment_names_two_descriptors(waiting: int) -> None:
    assert set(engines.environment(waiting)) == {"WG_HANDOVER_FD", "WG_EVENT_FD"}


# ---------------------------------------------------------------- what nobody sees of it


def checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def take_descriptor(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        taken = LIBC.syscall(SYS_PIDFD_GETFD, pidfd, 0, 0)
        checked(taken)
        os.close(taken)
    finally:
        os.close(pidfd)


def read_memory(pid: int) -> None:
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_size_t * 2)(0, 8)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    try:
        checked(LIBC.syscall(SYS_PROCESS_VM_READV, pid, local, one, remote, one, none))
    except OSError as error:
        if error.errno != errno.EFAULT:  # allowed, but nothing is at 0
            raise


LOOKS: dict[str, Callable[[int], object]] = {
    "environ": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
    "maps": lambda pid: Path(f"/proc/{pid}/maps").read_bytes(),
    "mem": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)),
    "auxv": lambda pid: Path(f"/proc/{pid}/auxv").read_bytes(),
    "fd": lambda pid: os.listdir(f"/proc/{pid}/fd"),
    "exe": lambda pid: os.readlink(f"/proc/{pid}/exe"),
    "cwd": lambda pid: os.readlink(f"/proc/{pid}/cwd"),
    "process_vm_readv": read_memory,
    "pidfd_getfd": take_descriptor,
    "ptrace": lambda pid: checked(LIBC.ptrace(PTRACE_SEIZE, pid, None, None)),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_nobody_of_its_user_sees_inside(look: Callable[[int], object], waiting: int) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as another:
        look(another.pid)  # so it is not the test that may not
        another.kill()
    with pytest.raises(PermissionError):
        look(waiting)


def test_it_is_still_told_from_others(waiting: int) -> None:
    """By ps, systemctl and our own tests."""
    assert Path(f"/proc/{waiting}/comm").read_text() == "wireguard-go\n"
    assert Path(f"/proc/{waiting}/cmdline").read_text().split("\0")[0] == str(BINARY)
    directory = Path(f"/proc/{waiting}")
    wait_for(lambda: status(directory)["State"].startswith("S"), "it waits")


# ---------------------------------------------------------------- a log that nobody reads


def say_nonsense(uapi: Path) -> None:
    """It logs that, then it hangs up."""
    with connect(uapi) as client:
        client.sendall(b"nonsense\n")
        assert client.recv(1) == b""


@pytest.fixture(params=["full", "without a reader"])
def unread(request: pytest.FixtureRequest) -> Iterator[int]:
    """The write end of a pipe."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb"):
        if request.param == "full":
            os.write(write_end, bytes(fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)))
        else:
            os.close(read_end)
        yield write_end
    with contextlib.suppress(OSError):
        os.close(read_end)


def test_it_goes_on_when_nobody_reads_its_log(unread: int, tmp_path: Path) -> None:
    process, handover, events = waiting_engine(BINARY, output=unread)
    with process, handover, events:
        serve_uapi(handover, tmp_path / "uapi")
        for _ in range(3):
            say_nonsense(tmp_path / "uapi")
        with connect(tmp_path / "uapi") as client:
            assert ask(client, "get=1\n\n").endswith("errno=0\n\n")
        handover.close()
        assert process.wait(10) == 0


def test_its_last_words_do_not_keep_it(unread: int) -> None:
    """Go's runtime writes a traceback at the end, by itself."""
    process, handover, events = waiting_engine(BINARY, output=unread)
    with process, handover, events:
        wait_for(lambda: is_confined(process.pid), "it has begun")
        process.send_signal(signal.SIGQUIT)
        assert process.wait(10) == 2


def test_it_goes_on_when_nobody_reads_its_events(tmp_path: Path) -> None:
    process, handover, events = waiting_engine(BINARY)
    with process, handover, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        events.close()
        serve_uapi(handover, tmp_path / "uapi")
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(10)
        with connect(tmp_path / "uapi") as client:
            settings = (
                f"set=1\nprivate_key={'a8' * 31}68\npublic_key={'09' + '00' * 31}\n"
                f"endpoint=127.0.0.1:{peer.getsockname()[1]}\npersistent_keepalive_interval=25\n\n"
            )
            assert ask(client, settings) == "errno=0\n\n"
            assert peer.recv(2048)[0] == 1  # an initiation, which is an event
            assert ask(client, "get=1\n\n").endswith("errno=0\n\n")
        process.kill()
