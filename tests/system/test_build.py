"""build.py, and the engine it makes: run as the daemon runs it, on a TUN of another namespace."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest

from support.engines import ask, connect, serve_uapi, waiting_engine
from support.stage import Stage

ROOT = Path(__file__).resolve().parents[2]
PT_DYNAMIC, PT_INTERP = 2, 3
EM_X86_64, EM_AARCH64 = 62, 183


def run_build(*args: str | Path, script: Path = ROOT / "build.py", **env: str) -> str:
    done = subprocess.run(
        [sys.executable, script, *args], env=os.environ | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("engine") / "wireguard-go"
    run_build("--output", output)
    return output


@pytest.fixture(scope="session")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_build", ROOT / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What build.py needs, to be spoiled by a test."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "wireguard-go", root / "wireguard-go")
    for name in ("build.py", "wireguard-go.patch"):
        shutil.copy(ROOT / name, root)
    (ROOT / "build").mkdir(exist_ok=True)
    (root / "build").symlink_to(ROOT / "build")  # a Go in there need not be fetched again
    return root


def elf_machine_and_segments(binary: Path) -> tuple[int, set[int]]:
    elf = binary.read_bytes()
    assert elf[:4] == b"\x7fELF"
    (machine,) = struct.unpack_from("<H", elf, 18)
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    types = (struct.unpack_from("<I", elf, offset + i * size)[0] for i in range(count))
    return machine, set(types)


# The binary


def test_is_static(binary: Path) -> None:
    assert os.access(binary, os.X_OK)
    assert not elf_machine_and_segments(binary)[1] & {PT_DYNAMIC, PT_INTERP}


def test_same_source_same_bytes(binary: Path, tmp_path: Path, checkout: Path) -> None:
    again = tmp_path / "again"
    # Another checkout, scratch directory and cache: nothing of them is in the binary.
    for name in ("scratch", "cache"):
        (tmp_path / name).mkdir()
    places = {"TMPDIR": str(tmp_path / "scratch"), "GOCACHE": str(tmp_path / "cache")}
    run_build("--output", again, script=checkout / "build.py", **places)
    assert again.read_bytes() == binary.read_bytes()
    assert str(tmp_path).encode() not in again.read_bytes()
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(("arch", "machine"), [("x86_64", EM_X86_64), ("aarch64", EM_AARCH64)])
def test_cross_build(arch: str, machine: int, tmp_path: Path) -> None:
    run_build("--arch", arch, "--output", tmp_path / "engine")
    found, segments = elf_machine_and_segments(tmp_path / "engine")
    assert found == machine
    assert not segments & {PT_DYNAMIC, PT_INTERP}


def test_stock_is_unpatched(binary: Path, tmp_path: Path) -> None:
    run_build("--stock", "--output", tmp_path / "stock")
    assert b"runSupervised" in binary.read_bytes()
    assert b"runSupervised" not in (tmp_path / "stock").read_bytes()


def test_go_tests_pass() -> None:
    assert "FAIL" not in run_build("--test")


# The source and the patch


def test_patch_survives_a_round_trip(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "build.py"
    run_build("--source", tmp_path / "source", script=script)
    run_build("--save-patch", tmp_path / "source", script=script)
    saved = (checkout / "wireguard-go.patch").read_text()
    assert saved == (ROOT / "wireguard-go.patch").read_text()


PATCH = "Why.\n--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"


def test_patch_applies(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\ntwo\nthree\nfour\n")
    build.apply_patch(PATCH + "--- /dev/null\n+++ b/g\n@@ -0,0 +1 @@\n+new\n", tmp_path)
    assert (tmp_path / "f").read_text() == "one\n2\nthree\nfour\n"
    assert (tmp_path / "g").read_text() == "new\n"


@pytest.mark.parametrize(
    ("source", "patch"),
    [
        pytest.param("zero\none\ntwo\nthree\n", PATCH, id="offset"),
        pytest.param("one\ntwo \nthree\n", PATCH, id="white space"),
        pytest.param("one\r\ntwo\r\nthree\r\n", PATCH, id="line ends"),
        pytest.param("one\ntwo\n", PATCH, id="short source"),
        pytest.param("one\ntwo\nthree\n", PATCH.removesuffix(" three\n"), id="short patch"),
        pytest.param("one\ntwo\nthree\n", PATCH + "stray\n", id="stray line"),
        pytest.param("one\ntwo\nthree\n", PATCH.replace("+1,3", "+2,3"), id="wrong place"),
        pytest.param("one\ntwo\nthree\n", PATCH.replace("/f", "/g"), id="missing file"),
        pytest.param("one\ntwo\nthree\n", PATCH.replace("a/f", "x/f"), id="malformed header"),
        pytest.param("", PATCH.replace("a/f", "/dev/null"), id="file in the way"),
    ],
)
def test_patch_that_does_not_fit(
    source: str, patch: str, build: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(source.encode())
    with pytest.raises(build.BuildError, match=r"wireguard-go\.patch"):
        build.apply_patch(patch, tmp_path)
    assert (tmp_path / "f").read_bytes() == source.encode()


def fails(checkout: Path, message: str) -> None:
    done = subprocess.run(
        [sys.executable, checkout / "build.py", "--source", checkout / "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert done.stderr.splitlines()[-1].startswith("build.py: error: ")
    assert "Traceback" not in done.stderr


def test_error_of_a_patch_that_does_not_fit(checkout: Path) -> None:
    patch = checkout / "wireguard-go.patch"
    patch.write_text(patch.read_text().replace("--- a/main.go", "--- a/gone.go", 1))
    fails(checkout, r"wireguard-go\.patch: .*gone\.go")


def test_error_of_a_module_that_is_not_pinned(checkout: Path) -> None:
    pins = checkout / "wireguard-go" / "go.sum"
    pinned = pins.read_text()
    pins.write_text(re.sub(r"(/wireguard [^\s/]+ h1:).{9}", r"\1AAAAAAAAA", pinned))
    fails(checkout, "checksum mismatch")
    pins.write_text(re.sub(r"(?m)^\S+/wireguard \S+ h1:.*\n", "", pinned))
    fails(checkout, r"go\.sum has no hash of golang\.zx2c4\.com/wireguard")


# The engine, as the daemon runs it

# Makes wg0, sends its descriptor out, deletes wg0 when told to, and says so.
INSIDE = """
import fcntl, os, socket, struct

TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x1, 0x1000, 0x4000
RTM_DELLINK, NLM_F_REQUEST, NLM_F_ACK = 17, 1, 4

tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"wg0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
outside = socket.socket(fileno=0)
socket.send_fds(outside, [b"made"], [tun])
os.close(tun)
outside.recv(1)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
link = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex("wg0"), 0, 0)
netlink.send(struct.pack("=IHHII", 32, RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, 0, 0) + link)
netlink.recv(4096)
outside.send(b"deleted")
"""

PRIVATE_KEY = "a8" * 31 + "68"  # clamped, as "get" gives it back
PEER_KEY = "09" + "00" * 31  # a valid point of X25519


@dataclass
class Engine:
    process: subprocess.Popen[bytes]
    inside: socket.socket
    """To the TUN's maker, in its namespace."""
    path: Path
    """The UAPI socket's."""
    handover: socket.socket
    events: IO[bytes]

    def connect(self) -> socket.socket:
        return connect(self.path)


@pytest.fixture
def tun() -> Iterator[tuple[int, socket.socket]]:
    """The descriptor of wg0 in a namespace of our own, and the socket to its maker."""
    inside, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inside.settimeout(10)
    command = ["unshare", "-Urn", sys.executable, "-I", "-c", INSIDE]
    with subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE) as maker:
        theirs.close()
        _, fds, _, _ = socket.recv_fds(inside, 16, 1)
        if not fds:
            assert maker.stderr
            pytest.skip(f"no TUN to be had here: {maker.stderr.read().decode()[-200:]}")
        yield fds[0], inside
        os.close(fds[0])
        inside.close()
        maker.kill()


@pytest.fixture
def engine(binary: Path, tun: tuple[int, socket.socket], tmp_path: Path) -> Iterator[Engine]:
    fd, inside = tun
    path = tmp_path / "uapi"
    process, handover, events = waiting_engine(binary)
    serve_uapi(handover, path)
    socket.send_fds(handover, [b"\0"], [fd])
    with process, handover, events:
        handover.settimeout(10)
        assert handover.recv(1) == b"\0", "the TUN is not in use"
        yield Engine(process, inside, path, handover, events)
        process.kill()


def output_at_end(engine: Engine) -> str:
    return engine.process.communicate(timeout=10)[0].decode()


def test_engine_serves_uapi_at_any_path(engine: Engine) -> None:
    with engine.connect() as client:
        engine.path.unlink()
        assert ask(client, f"set=1\nprivate_key={PRIVATE_KEY}\nmtu=1280\n\n") == "errno=0\n\n"
        answer = ask(client, "get=1\n\n")
    assert f"private_key={PRIVATE_KEY}\n" in answer
    assert re.search(r"^listen_port=[1-9]", answer, re.MULTILINE), "not up from the start"
    assert "mtu" not in answer
    engine.process.terminate()
    assert output_at_end(engine) == ""


def test_engine_tells_the_protocols_times_first(engine: Engine) -> None:
    assert engine.events.readline() == b"timers 180000 90000\n"


def test_engine_needs_a_pipe_for_its_events(binary: Path) -> None:
    done = subprocess.run([binary], env={"WG_HANDOVER_FD": "0"}, capture_output=True, timeout=10)
    assert done.returncode == 1
    assert b"Failed to find the event pipe" in done.stdout + done.stderr


def test_short_timers_are_for_tests_alone(stage: Stage) -> None:
    process, handover, events = waiting_engine(Path(stage.short_engine))
    with process, handover, events:
        assert events.readline() == b"timers 9000 4500\n"
        process.kill()


def test_waiting_engine_ends_with_its_supervisor(binary: Path) -> None:
    process, handover, events = waiting_engine(binary)
    with process, events:
        handover.close()
        assert process.wait(10) == 0


def test_engine_refuses_other_descriptors(binary: Path) -> None:
    process, handover, events = waiting_engine(binary)
    with process, handover, events:
        socket.send_fds(handover, [b"\0"], [handover.fileno()] * 2)
        output = process.communicate(timeout=10)[0]
    assert process.returncode == 1
    assert b"expected one descriptor, got 2" in output


def test_engine_is_configured_before_its_tun_comes(binary: Path, tmp_path: Path) -> None:
    process, handover, events = waiting_engine(binary)
    with process, handover, events:
        serve_uapi(handover, tmp_path / "uapi")
        with connect(tmp_path / "uapi") as client:
            assert ask(client, f"set=1\nprivate_key={PRIVATE_KEY}\n\n") == "errno=0\n\n"
        process.kill()


def test_engine_ends_with_its_supervisor(engine: Engine) -> None:
    engine.handover.close()
    assert engine.process.wait(10) == 0


def test_engine_stays_while_anybody_holds_its_handover_socket(engine: Engine) -> None:
    """As systemd does while the daemon is away."""
    with engine.handover.dup():
        engine.handover.close()
        with engine.connect() as client:
            assert ask(client, "get=1\n\n").endswith("errno=0\n\n")
    assert engine.process.wait(10) == 0


def test_engine_leaves_the_socket_alone(engine: Engine) -> None:
    with engine.connect() as client:
        ask(client, "get=1\n\n")
    engine.process.terminate()
    assert output_at_end(engine) == ""
    assert engine.path.is_socket()


@pytest.mark.parametrize("mtu", ["575", "65536", "", "-1", "x"])
def test_engine_refuses_mtu(mtu: str, engine: Engine) -> None:
    with engine.connect() as client:
        assert ask(client, f"set=1\nmtu={mtu}\n\n") == "errno=-22\n\n"


def test_set_starts_peers_at_once(engine: Engine) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, engine.connect() as client:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(3)  # well before a retry of the handshake, at 5 s
        port = peer.getsockname()[1]
        request = (
            f"set=1\nprivate_key={PRIVATE_KEY}\nmtu=1420\npublic_key={PEER_KEY}\n"
            f"endpoint=127.0.0.1:{port}\npersistent_keepalive_interval=25\n\n"
        )
        assert ask(client, request) == "errno=0\n\n"
        initiation = peer.recv(2048)
    assert (initiation[0], len(initiation)) == (1, 148)


def test_log_has_no_key(engine: Engine) -> None:
    with engine.connect() as client:
        # 43 of a key's 44 characters before the "=": taken for the name of a setting
        assert ask(client, f"set=1\n{'S' * 43}=\n\n") == "errno=-22\n\n"
    with engine.connect() as client:
        client.sendall(b"S" * 43 + b"\n")
        assert client.recv(1) == b""
    engine.process.terminate()
    output = output_at_end(engine)
    assert "set failed at line 1" in output
    assert "SSS" not in output


def test_engine_ends_with_its_tun(engine: Engine) -> None:
    with engine.connect() as client:
        ask(client, "get=1\n\n")
    engine.inside.send(b"!")
    assert engine.inside.recv(16) == b"deleted"
    engine.process.wait(timeout=1)
