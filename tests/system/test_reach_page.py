"""docs/reach.md: its examples against a real daemon, by their very text."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import wait_for
from support.sockets import name_server
from support.stage import Stage
from support.tunnels import tunnel

pytestmark = pytest.mark.distribution

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reach.md").read_text()
PYTHON = "/usr/bin/python3"  # Debian's, as python3-gi belongs to that
DNS, INTRANET = "198.51.100.53", "198.51.100.7"


@pytest.fixture(autouse=True)
def office(daemon: Daemon, client: Client, inside: Namespace, stage: Stage) -> Iterator[str]:
    conf = stage.conf(0, DNS=DNS)
    with tunnel(client, inside, conf, name="office", lifetime="persistent") as path:
        yield path


@contextlib.contextmanager
def web_server(
    directory: Path, address: str, port: int, inside: Namespace | None = None
) -> Iterator[None]:
    """A web server in a namespace or on the host."""
    (directory / "index.html").write_text("welcome")
    command = ["python3", "-m", "http.server", "--bind", address, str(port)]
    with subprocess.Popen(
        inside.command(*command) if inside else command,
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        shown = ("ss", "-Hltn", f"sport = :{port}")
        check = inside.check if inside else _check
        wait_for(lambda: check(*shown), "the web server listens")
        yield
        server.terminate()


def _check(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_request_in_python(daemon: Daemon, inside: Namespace, tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    inside.check("ip", "address", "add", INTRANET, "dev", "lo")
    with name_server(inside, DNS, INTRANET), web_server(tmp_path, INTRANET, 80, inside):
        done = subprocess.run(
            [PYTHON, "-c", example],
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": daemon.address},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout == "welcome\n", done.stderr


def test_a_service_that_listens_in_the_tunnel(
    daemon: Daemon, inside: Namespace, tmp_path: Path
) -> None:
    (command,) = re.findall(r"^ExecStart=%h/bin/listen\.py (.*)$", PAGE, re.M)
    with (
        web_server(tmp_path, "127.0.0.1", 8080),
        subprocess.Popen(
            [PYTHON, str(DOCS / "examples/listen.py"), *command.split()],
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": daemon.address},
        ) as service,
    ):
        wait_for(lambda: inside.check("ss", "-Hltn", "sport = :80"), "the service listens")
        for host in ("127.0.0.1", "::1"):
            answer = inside.check(sys.executable, "-c", REQUEST, host)
            assert answer == "welcome"
        service.terminate()


REQUEST = """
import http.client, sys
request = http.client.HTTPConnection(sys.argv[1], 80, timeout=10)
request.request("GET", "/")
print(request.getresponse().read().decode(), end="")
"""
