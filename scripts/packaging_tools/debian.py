"""Debian packages, for all users of a machine.

    /usr/bin/wg4netnsd, wg4netnsctl
    /usr/lib/wg4netnsd                     our Python package, and those that the release lacks
    /usr/lib/systemd/user                  the units
    /usr/share/dbus-1                      activation, and the interfaces
    /usr/share/{man,doc,…}                 manual pages, completions, licences, podman's hook

A package is made from the wheel, with dpkg-deb alone: there is nothing to compile.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Final, NamedTuple
from zipfile import ZipFile

from packaging_tools import python

CONTROL_FILES: Final = Path(__file__).with_name("control")
LIBRARY: Final = Path("usr/lib/wg4netnsd")
DEBIAN_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64"}

COPIED: Final = {
    "share/systemd/user/": "usr/lib/systemd/user/",
    "share/zsh/site-functions/": "usr/share/zsh/vendor-completions/",
    "share/": "usr/share/",
}
"""Where a wheel's data goes, by its prefix there; the first that fits counts."""

SCRIPTS: Final = ("pyroute2/config/test_platform.py", "pyroute2/netlink/diag/ss2.py")
"""Programs in others' packages, which we do not run."""

DEPENDS: Final = ("dbus-user-session", "iproute2", "libc6", "systemd")
RECOMMENDS: Final = ("libpam-systemd", "wireguard-tools")
SUGGESTS: Final = ("jq", "podman")  # for podman's hook

PROGRAM: Final = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{library}")

from {module} import main

sys.exit(main())
"""

CONTROL: Final = """\
Package: wg4netnsd
Version: {version}
Architecture: {arch}
Maintainer: The wg4netnsd authors <wg4netnsd@localhost>
Installed-Size: {size}
Depends: {depends}
Recommends: {recommends}
Suggests: {suggests}
Section: net
Priority: optional
Description: WireGuard for rootless network namespaces
 A per-user daemon that gives an unprivileged network namespace a WireGuard
 interface: that of a single command, of a container, or of bubblewrap. It
 needs no root, no setuid program and no kernel module, and is driven by the
 command wg4netnsctl or over the D-Bus session bus.
"""


class Release(NamedTuple):
    name: str
    suffix: str
    """Of the package's version. A newer release's sorts higher."""
    python: tuple[int, int]
    """Compiled modules fit one version only."""
    theirs: tuple[str, ...]
    """What the release has in the version that pyproject.toml needs, as Depends has it."""
    ours: tuple[str, ...]
    """The packages of requirements/test.txt that the release lacks, or has too old."""


RELEASES: Final = (
    Release(
        name="bookworm",
        suffix="deb12",
        python=(3, 11),
        theirs=("python3-dbus-next (>= 0.2.3)", "python3-systemd (>= 235)"),
        ours=(
            *("annotated-types", "pydantic", "pydantic-core", "typing-extensions"),
            *("typing-inspection", "dnspython", "h11", "jeepney", "pyroute2"),
        ),
    ),
    Release(
        name="trixie",
        suffix="deb13",
        python=(3, 13),
        theirs=(
            "python3-dbus-next (>= 0.2.3)",
            "python3-dnspython (>= 2.7)",
            "python3-jeepney (>= 0.9)",
            "python3-pydantic (>= 2.10)",
            "python3-systemd (>= 235)",
        ),
        ours=("h11", "pyroute2"),
    ),
)


def build(root: Path, wheel: Path, release: Release, arch: str, output: Path) -> Path:
    """Build a package for one release, of a wheel for `arch`."""
    with tempfile.TemporaryDirectory(prefix="wg4netnsd-package-") as scratch:
        tree = Path(scratch, "tree")
        version = f"{wheel.name.split('-')[1]}~{release.suffix}"
        _unpack_wheel(wheel, tree)
        lock = root / "requirements/test.txt"
        dotted = ".".join(map(str, release.python))
        if release.ours:
            python.unpack_pinned(lock, release.ours, dotted, arch, tree / LIBRARY)
        _drop_what_nobody_reads(tree / LIBRARY)
        _write_programs(tree)
        _write_documentation(root, tree, version)
        _write_control(tree, release, version, arch)
        _set_modes_and_times(tree)
        package = output / f"wg4netnsd_{version}_{DEBIAN_ARCH[arch]}.deb"
        command = ("dpkg-deb", "--build", "--root-owner-group", "-Zxz")
        subprocess.run([*command, tree, package], check=True, stdout=subprocess.DEVNULL)
        return package


def _unpack_wheel(wheel: Path, tree: Path) -> None:
    """Put our Python package into the library, and the wheel's data where Debian has it."""
    with ZipFile(wheel) as files:
        for name in files.namelist():
            content = files.read(name)
            _, is_data, path = name.partition(".data/data/")
            if not is_data:
                _write(tree / LIBRARY / name, content)
                continue
            prefix, to = next(each for each in COPIED.items() if path.startswith(each[0]))
            _write(tree / (to + path.removeprefix(prefix)), content)


def _drop_what_nobody_reads(library: Path) -> None:
    """pip's records are of files that dpkg owns here; importlib.metadata reads the others."""
    for directory in library.glob("*.dist-info"):
        (directory / "RECORD").unlink()
        _write(directory / "INSTALLER", b"debian\n")
    for script in SCRIPTS:
        library.joinpath(script).unlink(missing_ok=True)


def _write_programs(tree: Path) -> None:
    for name, module in {"wg4netnsd": "wg4netnsd.daemon", "wg4netnsctl": "wg4netnsd.ctl"}.items():
        text = PROGRAM.format(library=LIBRARY, module=module)
        _write(tree / "usr/bin" / name, text.encode())


def _write_documentation(root: Path, tree: Path, version: str) -> None:
    for page in [path for path in (tree / "usr/share/man").rglob("*") if path.is_file()]:
        _write(page.with_name(f"{page.name}.gz"), _gzip(page.read_bytes()))
        page.unlink()
    directory = tree / "usr/share/doc/wg4netnsd"
    for document in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        _write(directory / document.name, document.read_bytes())
    _write(directory / "changelog.gz", _gzip(_changelog(version).encode()))
    _write(directory / "NEWS.gz", _gzip((root / "CHANGELOG.md").read_bytes()))
    _write(directory / "copyright", _copyright(root).encode())
    overrides = CONTROL_FILES / "lintian-overrides"
    _write(tree / "usr/share/lintian/overrides/wg4netnsd", overrides.read_bytes())


def _copyright(root: Path) -> str:
    """Return the stanzas of the files, and the texts of the licences that they name."""
    ours, wireguard, go = (
        (root / path).read_text()
        for path in ("LICENSE", "wireguard-go/LICENSE", "wireguard-go/LICENSE.golang")
    )
    stanzas = (CONTROL_FILES / "copyright").read_text()
    texts = {"MIT": ours, "MIT and BSD-3-Clause": f"{wireguard}\n{go}"}
    return stanzas + "".join(f"\nLicense: {name}\n{_folded(text)}" for name, text in texts.items())


def _folded(text: str) -> str:
    """Indent by a blank, with a dot for an empty line, as a field of several lines has it."""
    return "".join(f" {line or '.'}\n" for line in text.strip().splitlines())


def _changelog(version: str) -> str:
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(_epoch()))
    return textwrap.dedent(f"""\
        wg4netnsd ({version}) unstable; urgency=medium

          * NEWS.gz has the changes.

         -- The wg4netnsd authors <wg4netnsd@localhost>  {date}
        """)


def _write_control(tree: Path, release: Release, version: str, arch: str) -> None:
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    major, minor = release.python
    interpreter = (f"python3 (>= {major}.{minor})", f"python3 (<< {major}.{minor + 1})")
    control = CONTROL.format(
        version=version,
        arch=DEBIAN_ARCH[arch],
        size=sum(-(-path.stat().st_size // 1024) for path in files),
        depends=", ".join([*interpreter, *release.theirs, *DEPENDS]),
        recommends=", ".join(RECOMMENDS),
        suggests=", ".join(SUGGESTS),
    )
    sums = "".join(
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
    )
    _write(tree / "DEBIAN/control", control.encode())
    _write(tree / "DEBIAN/md5sums", sums.encode())
    for script in ("postinst", "prerm"):
        _write(tree / "DEBIAN" / script, (CONTROL_FILES / script).read_bytes())


def _set_modes_and_times(tree: Path) -> None:
    """Give what a checkout or an archive has by chance one value."""
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() or _is_program(path) else 0o644)
        os.utime(path, (_epoch(), _epoch()))


def _is_program(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(2) == b"#!" or file.parent.name == "bin"


def _epoch() -> int:
    return int(os.environ["SOURCE_DATE_EPOCH"])


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
