"""The recipes of docs/containers.md, and a host where they can be run."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.bus import Bus
from support.containers import archive
from support.daemon import Daemon

PAGE = Path(__file__).parents[2] / "docs/containers.md"
ANNOTATION = '"$(cat ~/.config/wg4netnsd/podman-annotation)"'
"""The name of the annotation that the hook looks for, for a shell."""

IP = """#!/bin/sh
links=$(busybox ip "$@" | sed -n 's/^[0-9]*: \\([^:]*\\):.*/\\1/p')
server=$(sed -n 's/^nameserver //p' /etc/resolv.conf 2>/dev/null)
answer=$(echo knock | busybox nc -w 10 198.51.100.1 7)
echo "seen:" $links "|$server|$answer"
"""


def recipes() -> dict[str, list[str]]:
    """The page's headings, and the commands below each."""
    _, *sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    return {
        section.partition("\n")[0]: re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
        for section in sections
    }


@contextmanager
def host_daemon(bus: Bus, directory: Path) -> Iterator[Daemon]:
    """A daemon in the XDG_RUNTIME_DIR of the host's user, where the bus is too."""
    started = Daemon(bus, directory, XDG_RUNTIME_DIR=str(directory))
    yield started
    started.stop()


class Host:
    """Runs commands as a user who has office.conf, an image `busybox`, and a podman that works
    without systemd."""

    def __init__(self, directory: Path, conf: str) -> None:
        self.home = directory / "home"
        configuration, programs = self.home / ".config", self.home / "bin"
        for each in (configuration / "wg4netnsd", configuration / "containers", programs):
            each.mkdir(parents=True)
        (configuration / "wg4netnsd/office.conf").touch(mode=0o600)
        (configuration / "wg4netnsd/office.conf").write_text(conf)
        (configuration / "containers/containers.conf").write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        (configuration / "containers/storage.conf").write_text('[storage]\ndriver = "vfs"\n')
        (programs / "ip").write_text(IP)
        (programs / "ip").chmod(0o755)
        self.environment = os.environ | {
            "HOME": str(self.home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(directory),
        }
        image = archive(self.home / "image", ip=str(programs / "ip"))
        self.check(f"podman import {image} busybox")

    def run(self, commands: str) -> "subprocess.CompletedProcess[str]":
        with tempfile.TemporaryDirectory(dir=self.home) as directory:
            return subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands],
                env=self.environment,
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=60,
            )

    def check(self, commands: str) -> str:
        """What they print."""
        done = self.run(commands)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """What is left of podman."""
        pause = Path(self.environment["XDG_RUNTIME_DIR"]) / "libpod/tmp/pause.pid"
        os.kill(int(pause.read_text()), signal.SIGKILL)
