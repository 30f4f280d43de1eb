"""The resources that all tunnels share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from wg4netnsd.agent.client import Agent
from wg4netnsd.engine.spare import SpareEngine


class Resources(NamedTuple):
    agent: Agent
    spare: SpareEngine
    directory: Path
    """The daemon's runtime directory; each tunnel has its own directory in it."""
