"""What several modules here share, and none elsewhere."""

from collections.abc import Iterator

import pytest

from wg4netnsd import agent as agents
from wg4netnsd.agent import Agent


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent for a module's tests, without a daemon."""
    forked = agents.fork()
    yield forked
    forked.end()
