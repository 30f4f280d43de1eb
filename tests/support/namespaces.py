"""Unprivileged network namespaces, by the real `unshare` and `nsenter`."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from support.processes import wait_for

# Says so once it is inside, and stays until its stdin ends.
_STAY = ["sh", "-c", "echo inside && exec cat"]


class Namespace:
    """A network namespace that lives as long as the process that holds it.

    It belongs to a user namespace in which this user is root; `nested` puts that one
    into another.
    """

    def __init__(self, nested: bool = False) -> None:
        unshare = ["unshare", "--user", "--map-root-user"]
        outer = unshare if nested else []
        self.holder = subprocess.Popen(
            [*outer, *unshare, "--net", *_STAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"inside\n":
            raise AssertionError(f"unshare: no namespace, status {self.holder.wait()}")

    @property
    def pid(self) -> int:
        return self.holder.pid

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    @property
    def id(self) -> tuple[int, int]:
        """What the namespace is, whatever path or descriptor leads to it."""
        status = os.stat(self.path)
        return status.st_dev, status.st_ino

    def open(self) -> int:
        """A new descriptor of it, the caller's to close."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def command(self, *command: str) -> list[str]:
        """The command, to be run inside."""
        enter = ["nsenter", "--preserve-credentials", "--user", "--net", f"--target={self.pid}"]
        return [*enter, *command]

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it inside to its end; the status is the caller's to judge."""
        defaults: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(self.command(*command), **defaults | options)

    def check(self, *command: str, **options: Any) -> str:
        """What the command prints, which must succeed."""
        done = self.run(*command, **options)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    def popen(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.command(*command), **{"text": True} | options)

    def ip(self, *arguments: str) -> Any:
        """What `ip -json` tells from inside, once no address there is tentative any more.

        The kernel begins with each IPv6 address so, also where it need not be probed, and looks at
        it a moment later (addrconf_dad_work()).
        """

        def settled() -> str:
            shown = self.check("ip", "-json", *arguments) or "[]"
            return "" if '"tentative"' in shown else shown

        return json.loads(wait_for(settled, "no address is tentative"))

    def links(self) -> dict[str, Any]:
        return {each["ifname"]: each for each in self.ip("link", "show")}

    def addresses(self, interface: str) -> set[str]:
        """Those set on the interface, as ADDRESS/PREFIX, without link-local ones."""
        (shown,) = self.ip("address", "show", "dev", interface)
        return {
            f"{each['local']}/{each['prefixlen']}"
            for each in shown["addr_info"]
            if each["scope"] != "link"
        }

    def processes(self) -> set[int]:
        """This user's processes inside, the holder too."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                status = os.stat(entry / "ns/net")
            except OSError:  # another user's, or it has ended
                continue
            if (status.st_dev, status.st_ino) == self.id:
                found.add(int(entry.name))
        return found

    @contextlib.contextmanager
    def sibling(self) -> Iterator[int]:
        """Another network namespace of the same owner: the pid of the process that holds it."""
        held = self.popen(
            *("unshare", "--net", *_STAY), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with held:
            assert held.stdout and held.stdin
            assert held.stdout.readline() == "inside\n"
            yield held.pid
            held.stdin.close()

    def empty(self) -> None:
        """End the process that holds it."""
        for pipe in (self.holder.stdin, self.holder.stdout):
            _close(pipe)
        self.holder.wait(10)

    def close(self) -> None:
        """Empty it, having made sure that it holds nothing else."""
        if self.holder.poll() is None:
            try:
                wait_for(lambda: self.processes() <= {self.pid}, "processes left in a namespace")
            finally:
                self.empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


MakeNamespace = Callable[..., Namespace]
"""The fixture `namespace`: each call makes one."""


def ping(inside: Namespace, address: str) -> None:
    """One echo; the first one to a peer waits for the handshake."""
    inside.check("ping", "-n", "-c1", "-W10", address)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()
