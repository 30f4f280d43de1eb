"""File processes for tests that run no daemon."""

from collections.abc import Iterator
from contextlib import contextmanager

from wg4netnsd.files import server
from wg4netnsd.files.client import FileProcesses


@contextmanager
def file_processes() -> Iterator[FileProcesses]:
    """Outside of an event loop; they are of use in any that runs meanwhile."""
    processes = FileProcesses(*server.fork())
    yield processes
    processes.end()
