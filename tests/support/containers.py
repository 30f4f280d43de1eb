"""Rootless containers by the real podman."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Self

IMAGE = "localhost/busybox"
_STAY = ["tail", "-f", "/dev/null"]


class Container:
    """A running container without a network."""

    def __init__(self, *options: str) -> None:
        _import_image()
        self.id = podman(
            "run", "--detach", "--network=none", "--cap-add=NET_RAW", *options, IMAGE, *_STAY
        ).strip()
        self.pid = int(podman("inspect", "--format={{.State.Pid}}", self.id))

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def open(self) -> int:
        """A descriptor of its network namespace, the caller's to close."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def check(self, *command: str) -> str:
        """What the command prints, run inside by `podman exec`."""
        return podman("exec", self.id, *command)

    def close(self) -> None:
        podman("rm", "--force", "--time=0", self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def podman(*arguments: str) -> str:
    """What it prints, without systemd, and without a fuse or overlay that the kernel may not grant.

    The first use decides on the driver: a plain `podman` would make these refuse theirs.
    """
    command = ["podman", "--cgroup-manager=cgroupfs", "--storage-driver=vfs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@cache
def _import_image() -> None:
    podman("import", str(archive(Path(os.environ["HOME"]) / "busybox-image")), IMAGE)


def archive(root: Path, **programs: str) -> Path:
    """Of an image of busybox alone, with other programs in place of its own: nothing is fetched."""
    (root / "bin").mkdir(parents=True)
    busybox = Path(shutil.copy("/bin/busybox", root / "bin"))
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet in programs:
            shutil.copy(programs[applet], root / "bin" / applet)
        elif applet != busybox.name:
            (root / "bin" / applet).symlink_to(busybox.name)
    made = root.with_suffix(".tar")
    # As root's: else podman's store has files of subordinate ids, which can't simply be removed.
    roots = ("--owner=0", "--group=0")
    subprocess.run(["tar", *roots, "-cf", made, "-C", root, "."], check=True)
    return made
