"""From the key press to the command's first byte: `wg4netnsctl run` beside its peers.

    wg4netnsctl run CONF -- echo      namespaces, tunnel, DNS; a running daemon
    slirp4netns beside unshare        namespaces, TAP; then the command starts
    pasta -- echo                     namespaces, TAP, the host's addresses and routes

All in the same rounds, each from the start of its first process. The peers encrypt nothing.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.create import CONF
from bench.record import Table
from bench.turns import in_turns
from support.bus import Bus, Client
from support.ctl import PROGRAM, Ctl
from support.daemon import Daemon
from support.processes import wait_for
from support.stage import Control, read

UNSHARE = ("unshare", "--user", "--map-current-user", "--net", "--mount")


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage
    control = Control(stage.control)
    control.host_default_add()  # pasta asks for one
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        bus = Bus(Path(directory))
        daemon = Daemon(bus, Path(directory))
        ctl = Ctl(bus.address, Path(directory))
        ctl.write("office", CONF)
        with Client(bus.address) as client:
            ways: dict[str, Callable[[], float]] = {
                "wg4netnsd": lambda: _ours(ctl, client, daemon),
                "slirp4netns": _slirp4netns,
                "pasta": lambda: _first_byte(["pasta", "--quiet", "--config-net", "--", "echo"]),
                "floor: Python": lambda: _first_byte([_python(), "-c", "print()"]),
            }
            times = in_turns(ways, arguments.rounds)
        daemon.stop()
        bus.close()
    control.reset()
    return [Table("From the command to its first byte", "ms", times, "pasta")]


def _ours(ctl: Ctl, client: Client, daemon: Daemon) -> float:
    took = _first_byte([str(PROGRAM), "run", "office", "--", "echo"], ctl.environment)
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended")
    wait_for(lambda: daemon.footprint() == daemon.idle, "the daemon is idle")
    return took


def _python() -> str:
    return str(PROGRAM.with_name("python"))


def _first_byte(command: list[str], environment: dict[str, str] | None = None) -> float:
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(1) == b"\n", f"{command}: status {process.wait()}"
        return (time.perf_counter() - start) * 1e3


def _slirp4netns() -> float:
    """Do what a script does: a shell waits inside until slirp4netns reports that it is ready."""
    inside = [*UNSHARE, "sh", "-c", "echo; read -r _; echo; exec cat"]
    start = time.perf_counter()
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.read(1) == b"\n", "unshare: no namespace"
        read_end, write_end = os.pipe()
        options = ["--configure", f"--ready-fd={write_end}", "--disable-host-loopback"]
        process = subprocess.Popen(
            ["slirp4netns", *options, str(holder.pid), "tap0"],
            pass_fds=[write_end],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(write_end)
        assert os.read(read_end, 1) == b"1", "slirp4netns is not ready"
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert holder.stdout.read(1) == b"\n"
        took = (time.perf_counter() - start) * 1e3
        os.close(read_end)
        process.terminate()
        process.wait()
    return took
