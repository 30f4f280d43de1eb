"""Netstack's way to reach a tunnel: netstack/main.go, built from the Go module proxy's modules."""

import base64
import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.stage import Stage

SOURCE = Path(__file__).with_name("netstack")
ROOT = SOURCE.parents[2]


def build(directory: Path) -> Path:
    """Build it in that directory; scripts/bench has downloaded its modules."""
    spec = importlib.util.spec_from_file_location("engine_build", ROOT / "build.py")
    assert spec and spec.loader
    engine_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine_build)
    tree = Path(shutil.copytree(SOURCE, directory / "netstack"))
    go = engine_build.Go(directory)
    go.run("build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "netstack", cwd=tree)
    return tree / "netstack"


@contextlib.contextmanager
def proxy(program: Path, stage: Stage, client: int) -> Iterator[tuple[int, int]]:
    """Run it as one of the stage's clients; yield its pid and the port of its proxy."""
    me = stage.clients[client]
    settings = (
        f"private_key={_hex(me.private_key)}\n"
        f"public_key={_hex(stage.far.public_key)}\n"
        f"preshared_key={_hex(me.preshared_key)}\n"
        f"endpoint={stage.far.endpoint_v4}\n"
        "allowed_ip=0.0.0.0/0\n"
    )
    process = subprocess.Popen(
        [program, f"-address={me.ipv4}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin and process.stdout
        process.stdin.write(settings)
        process.stdin.close()
        yield process.pid, int(process.stdout.readline())
        process.terminate()


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()
