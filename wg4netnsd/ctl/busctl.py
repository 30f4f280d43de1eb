"""The session bus by way of busctl(1), for `wg4netnsctl`: calls, and a stream of signals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections import deque
from typing import Any, Final, Self

from wg4netnsd import errors, names

Message = dict[str, Any]
"""One of the bus's, as `busctl --json=short monitor` prints it."""

MATCHES: Final = (
    f"type='signal',sender='{names.BUS_NAME}'",
    "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',"
    f"arg0='{names.BUS_NAME}'",
)
"""The daemon's own signals, which the bus takes from nobody else, and its comings and goings."""

_NOT_RUNNING: Final = ("does not exist", "was not provided by any", "not activatable")
"""The bus's words where a name has no owner; busctl does not print the error's name."""

_MARK_PATH: Final = "/org/wg4netns1ctl"
_MARK_INTERFACE: Final = "org.wg4netns1ctl"
_MARK: Final = "Mark"

_PATIENCE: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""How long to wait for a mark to come back before another is sent, in seconds."""


def call(
    path: str, interface: str, method: str, *arguments: str, start: bool = True
) -> list[Any] | None:
    """The reply's body; None where the daemon does not run and `start` forbids to start it."""
    options = ["--json=short", f"--auto-start={'yes' if start else 'no'}"]
    result = _run(*options, "call", names.BUS_NAME, path, interface, method, *arguments)
    if result.returncode == 0:
        body: list[Any] = json.loads(result.stdout or '{"data": []}')["data"]
        return body
    message = result.stderr.strip().removeprefix("Call failed: ")
    if not start and any(words in message for words in _NOT_RUNNING):
        return None
    raise errors.Failed(message)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["busctl", "--user", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise _no_busctl() from None


def _no_busctl() -> errors.Failed:
    return errors.Failed("busctl is not to be found: it comes with systemd")


def sent_usec(message: Message) -> int:
    """When busctl had it, since 1970."""
    return int(message.get("timestamp-realtime") or now_usec())


def now_usec() -> int:
    return time.time_ns() // 1000


class Stream:
    """What the bus says that is in MATCHES, in its order, by a busctl that ends with us."""

    def __init__(self, reader: int) -> None:
        """`reader`: our output, whose other end may be closed: then BrokenPipeError is raised."""
        self._token = os.urandom(16).hex()
        self._marks = 0
        self._messages: deque[Message] = deque()
        self._unfinished = b""
        mark = f"type='signal',interface='{_MARK_INTERFACE}',arg0='{self._token}'"
        options = ["--user", "--json=short", *(f"--match={rule}" for rule in (*MATCHES, mark))]
        self._process = _spawn(["busctl", *options, "monitor"])
        assert self._process.stdout
        self._fd = self._process.stdout.fileno()
        self._reader = reader
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(reader, 0)  # POLLERR and POLLHUP come unasked

    def catch_up(self) -> list[Message]:
        """All that was sent before this call, and not read yet.

        A signal of ours shows that: the bus keeps the order. busctl has no way to tell that it
        listens that all its versions share, so until then, the mark may have to be sent again.
        """
        first = self._marks + 1
        caught: list[Message] = []
        for patience in _PATIENCE:
            self._marks += 1
            self._emit_mark(self._marks)
            while message := self._next(patience):
                if (number := self._mark_number(message)) is None:
                    caught.append(message)
                elif number >= first:
                    return caught
        raise errors.Failed("busctl monitor does not show what is on the bus")

    def next(self) -> Message:
        """The next one, however long it takes."""
        while True:
            message = self._next(None)
            if message is not None and self._mark_number(message) is None:
                return message

    def _next(self, patience: float | None) -> Message | None:
        """None if nothing comes within so many seconds."""
        while not self._messages:
            ready = dict(self._poll.poll(None if patience is None else patience * 1000))
            if self._reader in ready:
                raise BrokenPipeError
            if not ready:
                return None
            self._read()
        return self._messages.popleft()

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        if not data:
            raise errors.Failed(f"busctl monitor has ended: {self._last_words()}")
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        self._messages.extend(json.loads(line) for line in lines if line)

    def _last_words(self) -> str:
        assert self._process.stderr
        said = self._process.stderr.read().decode(errors="replace").splitlines()
        words = [line for line in said if not line.startswith("Monitoring ")]  # its greeting
        return words[-1] if words else f"status {self._process.wait()}"

    def _emit_mark(self, number: int) -> None:
        body = ("ss", self._token, str(number))
        result = _run("emit", _MARK_PATH, _MARK_INTERFACE, _MARK, *body)
        if result.returncode:
            raise errors.Failed(result.stderr.strip())

    def _mark_number(self, message: Message) -> int | None:
        if message.get("interface") != _MARK_INTERFACE:
            return None
        return int(message["payload"]["data"][1])

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    """A process that ends when we do, whatever ends us, and that a Ctrl-C leaves to us to end.

    busctl would notice our end only when it next writes.
    """
    # It has ctypes, which the other commands need not wait for.
    from wg4netnsd.syscalls import PR_SET_PDEATHSIG, prctl

    parent = os.getpid()

    def end_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)

    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=end_with_parent,
        )
    except FileNotFoundError:
        raise _no_busctl() from None
