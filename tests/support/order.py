"""The order of modules: what takes long is begun first, what is about all others is last."""

from itertools import groupby

import pytest


def is_last(item: pytest.Item) -> bool:
    """Marked `last`: where several worlds share the suite, each of them ends with it."""
    return item.get_closest_marker("last") is not None


def sort(items: list[pytest.Item]) -> None:
    """In place; within a module they stay as they are."""
    items.sort(key=lambda item: (is_last(item), item.get_closest_marker("long") is None))


def by_module(items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    modules: dict[str, list[pytest.Item]] = {}
    for name, group in groupby(items, lambda item: item.nodeid.partition("::")[0]):
        modules.setdefault(name, []).extend(group)
    return modules
