"""Contenders take turns: what else the machine does meanwhile, it does to all of them."""

from collections.abc import Callable, Mapping


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each has returned, once a round; there and back, so nobody is always the first."""
    values: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            values[name].append(ways[name]())
    return values
