"""How often to act: at once, and then at most once a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

PAUSE: Final = 1.0
"""Seconds after an act in which further requests only lead to one more act at the end."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Coalescer:
    """Act at once when asked, and once more at the end of a pause in which it was asked again."""

    def __init__(
        self, act: Callable[[], None], call_later: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        self._act = act
        self._call_later = call_later
        self._pause: Timer | None = None
        self._asked = False

    def ask(self) -> None:
        if self._pause:
            self._asked = True
        else:
            self._pause = self._call_later(PAUSE, self._on_pause_over)
            self._act()

    def _on_pause_over(self) -> None:
        self._pause = None
        if self._asked:
            self._asked = False
            self.ask()

    def close(self) -> None:
        if self._pause:
            self._pause.cancel()
