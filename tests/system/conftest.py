"""What several modules here share, and none elsewhere."""

from collections.abc import Iterator

import pytest

from wg4netnsd.agent import server as agents
from wg4netnsd.agent.client import Agent


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent for a module's tests, without a daemon."""
    forked = Agent(*agents.fork())
    yield forked
    forked.end()
