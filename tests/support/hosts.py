"""Hosts of a test's own, with what answers look-ups there, and namespaces that are confined."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.namespaces import Namespace
from support.processes import wait_for

HERE = Path(__file__).parent
SERVER = "127.0.0.1"
"""Of the host's DNS server as of a namespace's: the address does not tell them apart."""
HOSTS_ANSWER, INNER_ANSWER = "192.0.2.66", "198.51.100.7"
_STAY = ["sh", "-c", "echo inside && exec cat"]

# Its own, unlike the stage's: nothing is mounted in /etc, as on most machines.
_SET_UP = """
set -e
mount --make-rshared / # as systemd makes it
mount -t tmpfs -o mode=0755 files /mnt
mkdir /mnt/etc /mnt/run
tar --create --directory=/etc --ignore-failed-read . 2>/dev/null |
    tar --extract --directory=/mnt/etc --no-same-owner
mount --bind /mnt/etc /etc
mount --bind /mnt/run /run
mkdir -p /run/nscd /run/systemd/resolve /run/avahi-daemon /run/user/1000
ip link set lo up
ip link add uplink type veth peer name gateway
ip address add 192.0.2.1/24 dev uplink
ip link set uplink up
ip link set gateway up
"""


class Mounted(Namespace):
    """A namespace of processes that have their own network and their own mounts."""

    def __init__(self, holder: "subprocess.Popen[bytes]") -> None:
        self._closing = ExitStack()
        self.holder = holder
        assert holder.stdout is not None
        if holder.stdout.readline() != b"inside\n":
            raise AssertionError(f"no namespace, status {holder.wait()}")

    def command(self, *command: str) -> list[str]:
        enter = ["nsenter", "--preserve-credentials", "--user", "--net", "--mount"]
        return [*enter, f"--target={self.pid}", *command]

    def serve(self, answer: str, log: Path) -> None:
        """A DNS server in it, which writes into `log` what it is asked."""
        self.check("ip", "link", "set", "lo", "up")
        self.spawn(log, sys.executable, str(HERE / "dns.py"), SERVER, answer)
        wait_for(lambda: "listens\n" in log.read_text(), "a DNS server")

    def spawn(self, log: Path, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """A process that lives until close() at most."""
        with log.open("w") as output:
            process = self.popen(
                *command, stdout=output, stderr=output, env=os.environ | environment
            )
        self._closing.callback(_end, process)
        return process

    def mounts(self) -> list[str]:
        return Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()

    def close(self) -> None:
        self._closing.close()
        super().close()


class Host(Mounted):
    """What stands for a host: it has an /etc, a /run and a network of its own to be changed."""

    def __init__(self, directory: Path, unpacked: str) -> None:
        unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        super().__init__(subprocess.Popen([*unshare, *_STAY], **pipes))
        self.directory = directory
        self.unpacked = Path(unpacked)
        self.asked_log = directory / "host.dns"
        self.check("sh", "-c", _SET_UP)
        self.write("/etc/resolv.conf", f"nameserver {SERVER}\n")
        self.write("/etc/nsswitch.conf", "hosts: files dns\n")
        self.serve(HOSTS_ANSWER, self.asked_log)

    def write(self, path: str, text: str) -> None:
        """A new file in the place of what was there, as rename(2) puts it."""
        script = 'rm -f "$1.new" && cat >"$1.new" && mv -fT "$1.new" "$1"'
        self.check("sh", "-c", script, "sh", path, input=text)

    def lookup(self, name: str) -> str:
        """What getent says in a network namespace of its own that is not confined."""
        command = ["unshare", "--net", "getent", "ahosts", name]
        return self.run(*command, env=os.environ | self.libraries()).stdout

    def libraries(self) -> dict[str, str]:
        """Where the C library finds what nsswitch.conf names, and nobody has installed."""
        found = [*self.unpacked.glob("usr/lib/*-linux-gnu"), *self.unpacked.glob("lib/*-linux-gnu")]
        return {"LD_LIBRARY_PATH": ":".join(map(str, found))}

    def nscd(self) -> "subprocess.Popen[str]":
        """The real one, started; it answers by the host's nsswitch.conf."""
        self.write("/etc/nscd.conf", "enable-cache hosts yes\n")
        program = str(self.unpacked / "usr/sbin/nscd")
        log = self.directory / "nscd.log"
        process = self.spawn(log, program, "--foreground", **self.libraries())
        wait_for(lambda: self.run(program, "-g").returncode == 0, "nscd answers")
        return process

    def nscd_lookups(self) -> int:
        """How many look-ups of hosts nscd has answered, from its cache or not."""
        told = self.check(str(self.unpacked / "usr/sbin/nscd"), "-g")
        hosts = told.partition("hosts cache:")[2].partition("cache:\n")[0]
        counts = re.findall(r"(\d+)  cache (?:hits|misses) on", hosts)
        assert len(counts) == 4, told
        return sum(map(int, counts))

    def resolved(self) -> Path:
        """The real systemd-resolved, started, without the system bus; its log."""
        self.write(
            "/etc/systemd/resolved.conf",
            f"[Resolve]\nDNS={SERVER}\nDNSStubListener=no\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n",
        )
        log = self.directory / "resolved.log"
        # As root it would become the user systemd-resolve, whom there is not.
        user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
        (found,) = self.unpacked.glob(
            "**/lib/systemd/systemd-resolved"
        )  # /usr/lib from Debian 13 on
        program = str(found)
        self.spawn(log, *user, program, SYSTEMD_LOG_LEVEL="debug", SYSTEMD_LOG_TARGET="console")
        socket = f"/proc/{self.pid}/root/run/systemd/resolve/io.systemd.Resolve"
        wait_for(lambda: os.path.exists(socket), "systemd-resolved listens")
        return log

    def asked(self, name: str) -> int:
        """How often the host's DNS server was asked for it."""
        return self.asked_log.read_text().splitlines().count(name)

    @contextmanager
    def capture(self, marker: str) -> Iterator[dict[str, Any]]:
        """What tests/stage/capture.py sees on the host's interfaces, filled in at the end."""
        report = self.directory / "captured.json"
        program = [sys.executable, "-I", str(HERE.parent / "stage/capture.py")]
        seen: dict[str, Any] = {}
        with self.popen(
            *program, marker.encode().hex(), str(report), stdout=subprocess.PIPE
        ) as capture:
            assert capture.stdout
            assert capture.stdout.readline() == "ready\n"
            try:
                yield seen
            finally:
                capture.send_signal(signal.SIGTERM)
                assert capture.wait(10) == 0
        seen |= json.loads(report.read_text())


class Confined(Mounted):
    """A network namespace beside a host: with a DNS server, and confined to that."""

    def __init__(self, host: Host, *users: str) -> None:
        """`users` are options to unshare: of the user namespace that the mount namespace is of."""
        self.host = host
        self.resolv_conf = host.directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {SERVER}\n")
        self.asked_log = host.directory / "inner.dns"
        unshare = ["unshare", *users, "--net", "--mount", "--propagation=unchanged"]
        confined = [sys.executable, str(HERE / "confined.py"), str(self.resolv_conf), *_STAY]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        super().__init__(host.popen(*unshare, *confined, text=False, **pipes))
        self.serve(INNER_ANSWER, self.asked_log)

    def asked(self, name: str) -> int:
        return self.asked_log.read_text().splitlines().count(name)

    def lookup(self, name: str) -> str:
        """What getent says, with all the libraries that it would find on the host."""
        return self.run("getent", "ahosts", name, env=os.environ | self.host.libraries()).stdout


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(10)
