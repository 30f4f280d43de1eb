"""An interface to change."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.interface_changes import Interface, Make
from support.namespaces import Namespace
from wg4netnsd.agent.client import Agent
from wg4netnsd.agent.protocol import InterfaceSettings


@pytest.fixture
def tunnel(agent: Agent, inside: Namespace) -> Iterator[Make]:
    made: list[Interface] = []

    def make(first: InterfaceSettings) -> Interface:
        made.append(Interface(agent, inside, first))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def changed_as_created(tunnel: Make, agent: Agent, namespace: Any) -> Callable[..., Interface]:
    """Change an interface to each of the settings; it must look as if created with them."""

    def check(*stations: InterfaceSettings) -> Interface:
        subject = tunnel(stations[0])
        for station in stations[1:]:
            subject.change(station)
            fresh = Interface(agent, namespace(), station)
            assert subject.shape() == fresh.shape()
            fresh.close()
        return subject

    return check
