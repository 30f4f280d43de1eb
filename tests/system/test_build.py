"""build.py, the binary that it makes, and the source that it makes it from.

The wheel's engine was built by build.py, so most tests use that one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from wg4netnsd.engine.engine import BINARY

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # a cold build is all CPU

ROOT = Path(__file__).resolve().parents[2]
OWN_FILES = ROOT / "wireguard-go/src"
PT_DYNAMIC, PT_INTERP = 2, 3
EM_X86_64, EM_AARCH64 = 62, 183


def start_build(*args: str | Path, script: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *args], env=os.environ | env, capture_output=True, text=True
    )


def run_build(*args: str | Path, script: Path = ROOT / "build.py", **env: str) -> str:
    done = start_build(*args, script=script, **env)
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
    """A copy of build.py and the files that it needs, for a test to change."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "wireguard-go", root / "wireguard-go")
    (root / "scripts").mkdir()
    for name in ("build.py", "wireguard-go.patch", "scripts/save-patches"):
        shutil.copy(ROOT / name, root / name)
    (ROOT / "build").mkdir(exist_ok=True)
    (root / "build").symlink_to(ROOT / "build")  # it may hold a Go
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
    # The binary must not depend on the checkout, the scratch directory or the cache.
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


@pytest.mark.parametrize("options", [(), ("--without-buffers",)])
def test_go_tests_pass(options: tuple[str, ...]) -> None:
    """Upstream's and our own, also without the patch that a newer upstream may not take."""
    files = [f for f in OWN_FILES.rglob("*_test.go") if not (options and "buffers" in f.name)]
    ours = {test for f in files for test in names_of_tests(f.read_text())}
    passed = re.findall(r"^--- PASS: (\w+)", run_build("--test", *options), re.M)
    assert ours
    assert ours - set(passed) <= {"TestTrainsTooLong"}  # not every kernel makes such trains


def names_of_tests(text: str) -> list[str]:
    """The names of its tests; a fuzz test runs with its seeds."""
    return re.findall(r"^func ((?:Test|Fuzz)\w+)\([tf] ", text, re.M)


@pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("clang")), reason="cgo needs a C compiler"
)
def test_go_code_has_no_data_race() -> None:
    compiler = {} if shutil.which("gcc") else {"CC": "clang"}
    assert "--- PASS: TestConcurrencySafety" in run_build("--race", **compiler)


# The source: upstream's, our own files, the patches


def test_go_files_are_formatted_and_vetted() -> None:
    run_build("--check")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text + "\n\n", r"unformatted code: device/mtu\.go"),
        (lambda text: text.replace("%v", "%d"), r"device/mtu\.go:.* wrong type string"),
    ],
    ids=["format", "vet"],
)
def test_check_fails(spoil: Callable[[str], str], message: str, checkout: Path) -> None:
    file = checkout / "wireguard-go/src/device/mtu.go"
    file.write_text(spoil(file.read_text()))
    done = start_build("--check", script=checkout / "build.py")
    assert done.returncode == 1
    assert re.search(message, done.stdout + done.stderr)


def test_our_files_have_our_licence() -> None:
    holder = re.search(r"^Copyright .*", (ROOT / "LICENSE").read_text(), re.M)
    assert holder
    for file in OWN_FILES.rglob("*.go"):
        head = f"// SPDX-License-Identifier: MIT\n// {holder[0]}\n"
        assert file.read_text().startswith(head), file


def sources(checkout: Path) -> dict[str, str]:
    """Our Go files and the patches."""
    paths = (checkout / "wireguard-go.patch", *checkout.glob("wireguard-go/**/*"))
    return {str(path.relative_to(checkout)): path.read_text() for path in paths if path.is_file()}


def test_source_survives_a_round_trip(checkout: Path, tmp_path: Path) -> None:
    before = sources(checkout)
    run_build("--source", tmp_path / "source", script=checkout / "build.py")
    run_build(tmp_path / "source", script=checkout / "scripts/save-patches")
    assert sources(checkout) == before


def test_changes_are_saved_where_they_belong(checkout: Path, tmp_path: Path) -> None:
    before = sources(checkout)
    edited, again = tmp_path / "edited", tmp_path / "again"
    run_build("--source", edited, script=checkout / "build.py")
    replace(edited / "version.go", "const", "// new\nconst")
    replace(edited / "main.go", "\t\trunSupervised()", "\t\t// function\n\t\trunSupervised()")
    replace(edited / "tun/checksum.go", "nativeFromBig(ac)", "nativeFromBig(ac) // fast")
    replace(edited / "device/mtu.go", "576", "577")
    (edited / "device/idle.go").rename(edited / "conn/idle.go")

    save = checkout / "scripts/save-patches"
    run_build(edited, script=save)
    after = sources(checkout)
    assert {name for name, _ in before.items() ^ after.items()} == {
        "wireguard-go.patch",
        "wireguard-go/buffers.patch",
        "wireguard-go/src/device/mtu.go",
        "wireguard-go/src/device/idle.go",
        "wireguard-go/src/conn/idle.go",
    }
    assert added(before, after, "wireguard-go.patch") == {"// new", "// function"}
    fast = {"return nativeFromBig(ac) // fast"}
    assert added(before, after, "wireguard-go/buffers.patch") == fast
    run_build("--source", again, script=checkout / "build.py")
    subprocess.run(["diff", "--recursive", edited, again], check=True)

    replace(edited / "version.go", "// new", "// new\n// and fast")
    run_build("--buffers", edited, script=save)
    latest = sources(checkout)
    assert added(after, latest, "wireguard-go.patch") == set()
    assert added(after, latest, "wireguard-go/buffers.patch") == {"// and fast"}


def replace(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))


def added(before: dict[str, str], after: dict[str, str], patch: str) -> set[str]:
    """The lines that this patch adds now and did not add before."""
    old, new = (re.findall(r"^\+(?!\+\+ )\s*(.*)", files[patch], re.M) for files in (before, after))
    return set(new) - set(old)


PATCH = "Why.\n--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"


def test_patch_applies(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\ntwo\nthree\nfour\n")
    patch = tmp_path / "wireguard-go.patch"
    patch.write_text(PATCH + "--- /dev/null\n+++ b/g\n@@ -0,0 +1 @@\n+new\n")
    build.apply_patch(patch, tmp_path)
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
    (tmp_path / "wireguard-go.patch").write_text(patch)
    with pytest.raises(build.BuildError, match=r"wireguard-go\.patch"):
        build.apply_patch(tmp_path / "wireguard-go.patch", tmp_path)
    assert (tmp_path / "f").read_bytes() == source.encode()


def fails(checkout: Path, message: str) -> None:
    done = start_build("--source", checkout / "x", script=checkout / "build.py")
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert done.stderr.splitlines()[-1].startswith("build.py: error: ")
    assert "Traceback" not in done.stderr


def test_error_of_a_patch_that_does_not_fit(checkout: Path) -> None:
    patch = checkout / "wireguard-go.patch"
    patch.write_text(patch.read_text().replace("--- a/main.go", "--- a/gone.go", 1))
    fails(checkout, r"wireguard-go\.patch: .*gone\.go")


def test_error_of_a_file_that_upstream_has_too(checkout: Path) -> None:
    (checkout / "wireguard-go/src/main.go").write_text("package main\n")
    fails(checkout, r"upstream has .*wireguard-go/src/main\.go")


def test_error_of_a_module_that_is_not_pinned(checkout: Path) -> None:
    pins = checkout / "wireguard-go" / "go.sum"
    pinned = pins.read_text()
    pins.write_text(re.sub(r"(/wireguard [^\s/]+ h1:).{9}", r"\1AAAAAAAAA", pinned))
    fails(checkout, "checksum mismatch")
    pins.write_text(re.sub(r"(?m)^\S+/wireguard \S+ h1:.*\n", "", pinned))
    fails(checkout, r"go\.sum has no hash of golang\.zx2c4\.com/wireguard")
