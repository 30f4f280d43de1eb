"""Interfaces without an engine: the agent makes them, and a LinkWatch watches over them."""

import asyncio
import os
import time
from typing import Final

from support.namespaces import Namespace
from support.processes import PATIENCE
from wg4netnsd import netns
from wg4netnsd.agent import Agent, Request, Settings
from wg4netnsd.linkwatch import Gone, LinkStatus, LinkWatch, Watched
from wg4netnsd.netns import Tun

NAME: Final = "wg0"
SETTINGS: Final = Settings(1420, ["10.0.0.1/24", "fd00::1/64"], ["0.0.0.0/0", "::/0"])


async def create(
    agent: Agent, inside: Namespace, *, pins: bool, settings: Settings = SETTINGS
) -> Tun:
    """The interface, configured; nothing of ours but its TUN may keep the namespace alive."""
    target = netns.identify(inside.open())
    try:
        async with netns.provision(agent, target, Request(NAME, settings, pins)) as provisioning:
            made = await provisioning.tun()
            try:
                await provisioning.configured()
            except BaseException:
                made.close()
                raise
            return made
    finally:
        target.let_go()


class Watching:
    """An interface and what is told of it."""

    def __init__(self, agent: Agent, inside: Namespace, *, pins: bool) -> None:
        self.agent, self.inside = agent, inside
        self._loop = asyncio.new_event_loop()
        self._told: list[LinkStatus | Gone] = []
        self._watch: LinkWatch | None = None
        self.tun_fd, self.watched = self._loop.run_until_complete(create(agent, inside, pins=pins))

    def watch(self) -> None:
        """Have what happens told, from what is told by `watched` on."""

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

    def watch_anew(self) -> Watched:
        """As a daemon that has nothing but the TUN."""
        self._end_watch()
        self.watched = self._loop.run_until_complete(netns.watch(self.agent, self.tun_fd))
        self.watch()
        return self.watched

    def told(self, last: LinkStatus | Gone) -> list[LinkStatus | Gone]:
        """What is told up to this."""

        async def wait() -> None:
            deadline = time.monotonic() + PATIENCE
            while last not in self._told:
                assert time.monotonic() < deadline, f"{last}: not in {PATIENCE} s, but {self._told}"
                await asyncio.sleep(0.005)

        self._loop.run_until_complete(wait())
        told, self._told[:] = list(self._told), []
        return told

    def owner(self, *commands: str) -> None:
        """What the namespace's owner does."""
        for command in commands:
            self.inside.check(*command.split())

    def close(self) -> None:
        self._end_watch()
        os.close(self.tun_fd)
        self._loop.close()
