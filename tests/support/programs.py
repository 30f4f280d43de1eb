"""docs/programs.md, and a place where its commands can be run: a session with a tunnel `office`,
and behind it intranet.example.

The far end is a tunnel too, with servers in it, as an ordinary user can have them.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from support import dns
from support.manager import ctl
from support.processes import wait_for
from support.stage import keys

PAGE = Path(__file__).parents[2] / "docs/programs.md"
HOME = Path.home()
FAR, NEAR = "10.236.1.1", "10.236.1.2"
PORT = 51899
DISPLAY = 99

XTERM = """#!/usr/bin/python3 -I
import os, socket
host, _, number = os.environ["DISPLAY"].partition(":")
number = number.partition(".")[0]
if host:
    socket.create_connection((host, 6000 + int(number)))
else:
    socket.socket(socket.AF_UNIX).connect(f"/tmp/.X11-unix/X{number}")
"""

SSHD = """\
ListenAddress {far}:22
HostKey {directory}/host_key
PidFile none
AuthorizedKeysFile {directory}/client_key.pub
StrictModes no
UsePAM no
X11Forwarding yes
SetEnv PATH={directory}/bin:/usr/bin:/bin
Subsystem sftp internal-sftp
{programs}
"""

SSH = """\
Host intranet.example
    IdentityFile {directory}/client_key
    UserKnownHostsFile {directory}/known_hosts
    StrictHostKeyChecking accept-new
"""


class Line(NamedTuple):
    """A line of one of the page's tables."""

    command: str
    instead: str = ""


def lines(heading: str) -> list[Line]:
    """Those of the table below a heading, or below the line that begins so."""
    _, _, text = PAGE.read_text().partition(f"\n{heading}")
    table = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert table, heading
    _, _, *rows = (re.split(r"\s*\|\s*", row)[1:-1] for row in table[0].splitlines())
    return [Line(*(cell.strip("`") for cell in row[:2])) for row in rows]


class Place:
    """The session. Commands run in a directory of their own, with a fake X server."""

    def __init__(self, directory: Path, unpacked: Path) -> None:
        self.directory = directory
        self._closing = ExitStack()
        self.work = directory / "work"
        self.clear()
        (HOME / "notes").write_text("noted\n")
        self._closing.callback((HOME / "notes").unlink)
        self.displays = 0
        """How often a client has connected to an X server outside."""
        self._environment()
        self._configurations()
        self._keys()
        self._displays()
        self._serve(unpacked)
        self._serve_outside()

    def clear(self) -> None:
        """Have the directory in which commands run as it was at first."""
        shutil.rmtree(self.work, ignore_errors=True)
        for name in ("mnt", "own"):  # to mount on, and for a browser's profile
            (self.work / name).mkdir(parents=True)
        (self.work / "notes").write_text("noted\n")
        (HOME / "copied").unlink(missing_ok=True)

    def _environment(self) -> None:
        programs = self.directory / "bin"
        programs.mkdir()
        (programs / "xterm").write_text(XTERM)
        (programs / "xterm").chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "DISPLAY": f":{DISPLAY}",
            "MOZ_SANDBOX_LOGGING": "1",
            "SSH_AUTH_SOCK": str(self.directory / "agent"),
        }

    def _configurations(self) -> None:
        office, far = keys(), keys()
        place = HOME / ".config/wg4netnsd"
        place.mkdir(parents=True)
        self._closing.callback(shutil.rmtree, place)
        texts = {
            "far": f"[Interface]\nPrivateKey = {far.private}\nAddress = {FAR}/24\n"
            f"ListenPort = {PORT}\n[Peer]\nPublicKey = {office.public}\nAllowedIPs = {NEAR}/32\n",
            "office": f"[Interface]\nPrivateKey = {office.private}\nAddress = {NEAR}/24\n"
            f"DNS = {FAR}\n[Peer]\nPublicKey = {far.public}\nAllowedIPs = 0.0.0.0/0\n"
            f"Endpoint = 127.0.0.1:{PORT}\nPersistentKeepalive = 1\n",
        }
        for name, text in texts.items():
            (place / f"{name}.conf").touch(mode=0o600)
            (place / f"{name}.conf").write_text(text)

    def _keys(self) -> None:
        for name in ("host_key", "client_key"):
            path = str(self.directory / name)
            _check("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
        (HOME / ".ssh").mkdir(mode=0o700)
        self._closing.callback(shutil.rmtree, HOME / ".ssh")
        (HOME / ".ssh/config").write_text(SSH.format(directory=self.directory))
        self.spawn("ssh-agent", "-D", "-a", self.environment["SSH_AUTH_SOCK"])
        wait_for(Path(self.environment["SSH_AUTH_SOCK"]).exists, "ssh-agent listens")
        _check("ssh-add", "-q", str(self.directory / "client_key"), env=self.environment)
        _check("git", "init", "--quiet", "--bare", str(HOME / "project.git"))
        self._closing.callback(shutil.rmtree, HOME / "project.git")

    def _displays(self) -> None:
        """X servers that only count: a local one, and what `ssh -X` has made of another."""
        sockets = Path("/tmp/.X11-unix")
        sockets.mkdir(exist_ok=True)
        local = socket.socket(socket.AF_UNIX)
        local.bind(str(sockets / f"X{DISPLAY}"))
        self._closing.callback((sockets / f"X{DISPLAY}").unlink)
        local.listen()
        forwarded = socket.create_server(("127.0.0.1", 6010))
        for server in (local, forwarded):
            self._closing.callback(server.close)
            self._closing.callback(server.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=self._count, args=(server,), daemon=True).start()

    def _count(self, server: socket.socket) -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return
            self.displays += 1

    def _serve(self, unpacked: Path) -> None:
        ctl("up", "far")
        self._closing.callback(ctl, "down", "far")
        libexec = unpacked / "usr/lib/openssh"
        programs = [
            f"{keyword} {libexec / name}"
            for keyword, name in (
                ("SshdSessionPath", "sshd-session"),
                ("SshdAuthPath", "sshd-auth"),
            )
            if (libexec / name).exists()
        ]
        text = SSHD.format(far=FAR, directory=self.directory, programs="\n".join(programs))
        (self.directory / "sshd_config").write_text(text)
        libraries = ":".join(map(str, unpacked.glob("usr/lib/*-linux-gnu")))
        libraries += ":" + ":".join(map(str, unpacked.glob("lib/*-linux-gnu")))
        sshd = ["env", f"LD_LIBRARY_PATH={libraries}", str(unpacked / "usr/sbin/sshd"), "-D", "-e"]
        servers = [
            [*sshd, "-f", str(self.directory / "sshd_config")],
            [sys.executable, dns.__file__, FAR, FAR],
            [sys.executable, "-m", "http.server", "--bind", FAR, "80"],
            ["ping", "-q", "-i", "0.5", NEAR],
        ]
        for server in servers:
            self.spawn("wg4netnsctl", "exec", "far", "--", *server)
        for listening in ("tcp sport = :22", "tcp sport = :80", "udp sport = :53"):
            kind, _, rule = listening.partition(" ")
            look = ["exec", "far", "--", "ss", "-Hln", f"--{kind}", rule]
            wait_for(lambda look=look: ctl(*look), listening)

    def _serve_outside(self) -> None:
        self.spawn(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "8000")
        self.spawn("dbus-daemon", "--session", "--nofork", "--address=unix:abstract=/tmp/bus")
        for kind, rule in (("tcp", "sport = :8000"), ("unix", "src @/tmp/bus")):
            look = ["ss", "-Hln", f"--{kind}", rule]
            wait_for(lambda look=look: subprocess.check_output(look), rule)

    def spawn(self, *command: str) -> None:
        """Run a command until the place is closed."""
        with (self.directory / "servers.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        self._closing.callback(_end, process)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """As a user types it, outside of the tunnel, in a session with a kernel keyring."""
        add = "keyctl add user token secret @s; keyctl add user lasting secret @u"
        script = f'({add}) >/dev/null; exec bash -c "$1"'
        return subprocess.run(
            ["keyctl", "session", "-", "sh", "-c", script, "sh", command],
            env=self.environment, cwd=self.work, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def run_within(self, how: str, command: str) -> subprocess.CompletedProcess[str]:
        """The same in the tunnel, by `run` or by `exec`."""
        if how == "exec":
            ctl("up", "office")
        try:
            return self.run(f"wg4netnsctl {how} office -- bash -c {shlex.quote(command)}")
        finally:
            if how == "exec":
                ctl("down", "office")

    def log(self) -> str:
        return (self.directory / "servers.log").read_text(errors="replace")

    def close(self) -> None:
        self.clear()
        self._closing.close()


def _check(*command: str, **options: dict[str, str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(10)
