"""Interfaces without an engine: the agent makes them, and a LinkWatch watches over them."""

import asyncio
import os
import time
from typing import Final

from support.namespaces import Namespace
from support.processes import PATIENCE
from wg4netnsd.agent.client import Agent, NewInterface
from wg4netnsd.agent.protocol import CreateInterface, InterfaceSettings
from wg4netnsd.tunnel.link_watch import LinkEnd, LinkStatus, LinkWatch
from wg4netnsd.tunnel.netns import Netns

NAME: Final = "wg0"
SETTINGS: Final = InterfaceSettings(1420, ["10.0.0.1/24", "fd00::1/64"], ["0.0.0.0/0", "::/0"])


async def create(
    agent: Agent, inside: Namespace, *, pins: bool, settings: InterfaceSettings = SETTINGS
) -> NewInterface:
    """Create and configure the interface; of our fds, only its TUN may pin the namespace."""
    target = Netns.identify(inside.open())
    try:
        async with agent.create(target.fd, CreateInterface(NAME, settings, pins)) as asked:
            made = await asked.created()
            try:
                await asked.done()
            except BaseException:
                made.close()
                raise
            return made
    finally:
        target.close()


class Watching:
    """An interface and the reports about it."""

    def __init__(self, agent: Agent, inside: Namespace, *, pins: bool) -> None:
        self.agent, self.inside = agent, inside
        self._loop = asyncio.new_event_loop()
        self._told: list[LinkStatus | LinkEnd] = []
        self._watch: LinkWatch | None = None
        self.tun_fd, self.watched = self._loop.run_until_complete(create(agent, inside, pins=pins))

    def watch(self) -> None:
        """Begin to collect reports: all changes since `watched`."""

        async def begin() -> LinkWatch:
            return LinkWatch(self.watched, self.tun_fd, self._told.append, self._told.append)

        self._watch = self._loop.run_until_complete(begin())

    def _end_watch(self) -> None:
        async def end() -> None:
            if self._watch:
                self._watch.close()
                self._watch.close()  # may be closed already, as after the interface's end
            else:
                os.close(self.watched.fd)

        self._loop.run_until_complete(end())

    def watch_anew(self) -> LinkStatus:
        """Watch again, like a daemon that has only the TUN."""
        self._end_watch()
        self.watched = self._loop.run_until_complete(self.agent.watch(self.tun_fd))
        self.watch()
        return LinkStatus(self.watched.link.name, self.watched.link.up)

    def told(self, last: LinkStatus | LinkEnd) -> list[LinkStatus | LinkEnd]:
        """Wait for the report `last`; return all reports up to it."""

        async def wait() -> None:
            deadline = time.monotonic() + PATIENCE
            while last not in self._told:
                assert time.monotonic() < deadline, f"{last}: not in {PATIENCE} s, but {self._told}"
                await asyncio.sleep(0.005)

        self._loop.run_until_complete(wait())
        told, self._told[:] = list(self._told), []
        return told

    def owner(self, *commands: str) -> None:
        """Run commands as the namespace's owner."""
        for command in commands:
            self.inside.check(*command.split())

    def close(self) -> None:
        self._end_watch()
        os.close(self.tun_fd)
        self._loop.close()
