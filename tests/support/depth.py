"""How deep the suite digs: as deep as there is time for, or with `--long` to the bottom.

An ordinary run does the same each time. A long one also looks where no run has looked before.
"""

from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")

_long = False

settings.register_profile("usual", derandomize=True, database=None)
settings.register_profile("long", derandomize=False)


def choose(long: bool) -> None:
    """Before the tests are collected, which ask at once."""
    global _long
    _long = long
    settings.load_profile("long" if long else "usual")


def depth(usual: T, long: T) -> T:
    """How many times something is done, for how many seconds, or what all is tried."""
    return long if _long else usual
