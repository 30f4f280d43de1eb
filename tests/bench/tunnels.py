"""A benchmark's own daemon, with many tunnels, each in its own namespace."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.bus import Bus
from support.daemon import Daemon
from support.namespaces import Namespace


@contextlib.contextmanager
def daemon_with(
    confs: Mapping[str, str], **options: Any
) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """Yield the daemon, and the tunnels' paths by name. `confs` is by name, too; the options are
    CreateTunnel's."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-")))
        namespaces = {name: stack.enter_context(Namespace()) for name in confs}
        bus = Bus(directory)
        stack.callback(bus.close)
        daemon = Daemon(bus, directory)
        stack.callback(daemon.stop)  # it closes the tunnels
        yield (
            daemon,
            {
                name: daemon.client.create(namespaces[name], conf, name=name, **options)
                for name, conf in confs.items()
            },
        )
