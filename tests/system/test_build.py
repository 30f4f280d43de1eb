"""build.py, and the binary that it makes.

The wheel's engine is one that build.py has made; what has to be built anew, is.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from wg4netnsd.engine.engine import BINARY

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # a cold build is all CPU

ROOT = Path(__file__).resolve().parents[2]
PT_DYNAMIC, PT_INTERP = 2, 3
EM_X86_64, EM_AARCH64 = 62, 183


def run_build(*args: str | Path, script: Path = ROOT / "build.py", **env: str) -> str:
    done = subprocess.run(
        [sys.executable, script, *args], env=os.environ | env, capture_output=True, text=True
    )
    failures = re.findall(r"(?m)^ *--- FAIL.*\n(?: +.*\n)*", done.stdout)
    assert done.returncode == 0, "".join(failures) + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
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


def test_is_static() -> None:
    assert os.access(BINARY, os.X_OK)
    assert not elf_machine_and_segments(BINARY)[1] & {PT_DYNAMIC, PT_INTERP}


def test_same_source_same_bytes(tmp_path: Path, checkout: Path) -> None:
    again = tmp_path / "again"
    # Another checkout, scratch directory and cache: nothing of them is in the binary.
    for name in ("scratch", "cache"):
        (tmp_path / name).mkdir()
    places = {"TMPDIR": str(tmp_path / "scratch"), "GOCACHE": str(tmp_path / "cache")}
    run_build("--output", again, script=checkout / "build.py", **places)
    assert again.read_bytes() == BINARY.read_bytes()
    assert str(tmp_path).encode() not in again.read_bytes()
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(("arch", "machine"), [("x86_64", EM_X86_64), ("aarch64", EM_AARCH64)])
def test_cross_build(arch: str, machine: int, tmp_path: Path) -> None:
    run_build("--arch", arch, "--output", tmp_path / "engine")
    found, segments = elf_machine_and_segments(tmp_path / "engine")
    assert found == machine
    assert not segments & {PT_DYNAMIC, PT_INTERP}


def test_stock_is_unpatched(tmp_path: Path) -> None:
    run_build("--stock", "--output", tmp_path / "stock")
    assert b"runSupervised" in BINARY.read_bytes()
    assert b"runSupervised" not in (tmp_path / "stock").read_bytes()


def test_go_tests_pass() -> None:
    """All that the patch brings along."""
    ours = re.findall(r"^\+func (Test\w+)\(t ", (ROOT / "wireguard-go.patch").read_text(), re.M)
    passed = re.findall(r"^--- PASS: (\w+)", run_build("--test"), re.M)
    assert ours
    assert set(ours) - set(passed) <= {"TestTrainsTooLong"}  # which not all kernels make


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
