"""`wg4netnsctl`: an ordinary client of the public bus API.

    run CONF -- CMD    create ─► namespaces ─► lookups ─► command
    exec NAME -- CMD                namespaces ─► lookups ─► command
    up, attach         create
    list, show         show
    wg NAME …          wg

Each command's module is imported only for that command: Python's start-up is most of what `run`
costs.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Entry point of `wg4netnsctl`."""
    gc.disable()  # during imports, where it finds nothing and takes 2 ms
    from wg4netnsd.ctl import program

    program.main()
