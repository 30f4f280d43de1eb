"""`wg4netnsctl`: a client of the public bus API like any other.

    run CONF -- CMD    create ─► namespaces ─► lookups ─► command
    exec NAME -- CMD                namespaces ─► lookups ─► command
    up, attach         create
    list, show         show
    wg NAME …          wg

Each command's module is imported when it is asked for: Python's start is what `run` costs most.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Entry point of `wg4netnsctl`."""
    gc.disable()  # for as long as modules are imported, where it finds nothing and takes 2 ms
    from wg4netnsd.ctl import program

    program.main()
