"""The predecessor's way to create a tunnel: CMU's wireguard4netns, after its published source.

It starts a program for each tunnel (oneshot.py). The program creates a TUN without IFF_VNET_HDR, so
each packet is read and written by itself. It starts a wireguard-go on the TUN, checks every 100 ms
whether the UAPI socket is there, configures the engine and exits. Addresses and routes are left to
the caller.

The engine is the upstream release that ours is based on, built like stock, with only the
predecessor's patch (predecessor.patch), because stock refuses a TUN in another namespace. The
predecessor itself pins an older release, built with Go 1.19. So the progress of upstream and Go
since then counts in the predecessor's favour here.
"""

import contextlib
import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.namespaces import Namespace

ROOT = Path(__file__).resolve().parent.parent.parent
INTERFACE = "tun0"  # the engine would find a wg0 on the host


def build(directory: Path) -> Path:
    """Build its engine in that directory."""
    spec = importlib.util.spec_from_file_location("engine_build", ROOT / "build.py")
    assert spec and spec.loader
    engine_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine_build)
    go = engine_build.Go(directory)
    tree = go.source(directory / "predecessor", patches=())
    engine_build.apply_patch(Path(__file__).with_suffix(".patch"), tree)
    flags = "-ldflags=-s -w -X golang.zx2c4.com/wireguard/ipc.socketDirectory=."
    go.run("build", "-trimpath", "-buildvcs=false", flags, "-o", "wireguard-go", ".", cwd=tree)
    return Path(tree, "wireguard-go")


@contextlib.contextmanager
def tunnel(engine: Path, namespace: Namespace, conf: str) -> Iterator[int]:
    """Yield its wireguard-go's pid. `conf` is a wg-quick file; only its IPv4 addresses count."""
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        pid, _ = _start(engine, namespace, conf, Path(directory))
        try:
            for address in _addresses(conf):
                namespace.check("ip", "address", "add", address, "dev", INTERFACE)
            namespace.check("ip", "link", "set", INTERFACE, "up")
            yield pid
        finally:
            _end(pid)


def create(engine: Path, conf: str) -> float:
    """Return milliseconds from the program's start to its end, when the engine is configured.

    The interface has no address yet, and is down.
    """
    with tempfile.TemporaryDirectory(prefix="wg-") as directory, Namespace() as namespace:
        pid, took = _start(engine, namespace, conf, Path(directory))
        _end(pid)
    return took


def _start(engine: Path, namespace: Namespace, conf: str, directory: Path) -> tuple[int, float]:
    """Return the engine's pid, and how many milliseconds it took."""
    file = directory / "tunnel.conf"
    file.touch(mode=0o600)
    file.write_text("".join(line for line in conf.splitlines(True) if "Address" not in line))
    program = [sys.executable, str(Path(__file__).with_name("oneshot.py"))]
    arguments = [str(engine), str(namespace.pid), INTERFACE, file.name]
    start = time.perf_counter()
    done = subprocess.run(
        [*program, *arguments], cwd=directory, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout), (time.perf_counter() - start) * 1e3


def _addresses(conf: str) -> list[str]:
    (line,) = (line for line in conf.splitlines() if line.startswith("Address"))
    return [each.strip() for each in line.partition("=")[2].split(",") if ":" not in each]


def _end(pid: int) -> None:
    """End the engine, which is not our child: the program that started it has ended."""
    engine = os.pidfd_open(pid)
    signal.pidfd_send_signal(engine, signal.SIGTERM)
    select.select([engine], [], [])
    os.close(engine)
