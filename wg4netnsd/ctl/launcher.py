"""How our programs start: `setup` changes the first line of the scripts that pip made.

    #!/…/bin/python           to  #!/usr/bin/env -S --block-signal=INT /…/bin/python -I

- `-I`: by PYTHONPATH, PYTHONHOME and the like, Python would load other modules than ours, or none.
- `--block-signal=INT`, for wg4netnsctl: a Ctrl-C while Python itself starts would end in its
  traceback. program.py unblocks the signal where it can be answered.

pip writes `#!/bin/sh` and a line with `exec` where the path is long or has blanks; it is changed
likewise. No installer has a setting for this.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
from pathlib import Path
from typing import Final

_FIRST_LINE: Final = re.compile(rb"#!(?!/bin/sh\n)(?:/usr/bin/env -S .*? )??(/\S+)( -\w+)?\n")
_EXEC: Final = re.compile(
    rb"#!/bin/sh\n'''exec' (?:env \S+ )?(\"[^\"]*\"|'[^']*'|\S+)( -\w+)? \"\$0\" \"\$@\"\n"
)
_LONGEST: Final = 255  # BINPRM_BUF_SIZE in linux/binfmts.h
_BLOCK: Final = "--block-signal=INT"


def isolate(script: Path, *, block_interrupts: bool = False) -> bool:
    """Change the script as above. Returns whether that was necessary. Raises OSError."""
    # -I would also leave out the user's packages, which may be where we are.
    ours = Path(site.getusersitepackages()) in Path(__file__).parents
    return _rewrite(script, "-EP" if ours else "-I", block_interrupts and _env_can_block())


def restore(script: Path) -> bool:
    """Undo it. Returns whether that was necessary. Raises OSError."""
    return _rewrite(script, "", block=False)


def _rewrite(script: Path, flags: str, block: bool) -> bool:
    old = script.read_bytes()
    option = f" {flags}".encode() if flags else b""
    if found := _FIRST_LINE.match(old):
        env = f"/usr/bin/env -S {_BLOCK} ".encode() if block else b""
        first = b"#!" + env + found[1] + option + b"\n"
        if len(first) > _LONGEST:
            first = b"#!" + found[1] + option + b"\n"
    elif found := _EXEC.match(old):
        env = f"env {_BLOCK} ".encode() if block else b""
        first = b"#!/bin/sh\n'''exec' " + env + found[1] + option + b' "$0" "$@"\n'
    else:
        return False
    new = first + old[found.end() :]
    if new == old:
        return False
    _replace(script, new)
    return True


def _replace(script: Path, content: bytes) -> None:
    """Replace it at once: a call may read it at any time."""
    written = script.with_name(f".{script.name}.{os.getpid()}")
    try:
        written.write_bytes(content)
        written.chmod(script.stat().st_mode & 0o7777)
        written.rename(script)
    finally:
        written.unlink(missing_ok=True)


def _env_can_block() -> bool:
    """As that of coreutils can since 8.31; others can't."""
    try:
        return not subprocess.run(
            ["/usr/bin/env", "-S", f"{_BLOCK} true"], capture_output=True, timeout=30
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return False
