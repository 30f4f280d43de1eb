"""A tunnel's interface, controlled from outside its namespace through its TUN.

The namespace's owner may rename it, take it down, move it or delete it; the daemon notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from wg4netnsd import errors
from wg4netnsd.agent.client import Agent, NewInterface, WatchedLink
from wg4netnsd.agent.protocol import ChangeInterface, InterfaceSettings
from wg4netnsd.aio import blocking
from wg4netnsd.aio.tasks import log_failure
from wg4netnsd.kernel import tun
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.link_watch import LinkEnd, LinkStatus, LinkWatch
from wg4netnsd.tunnel.netns import Netns

VERDICT_TIME: Final = 1.0
"""Seconds that the kernel may take to report why an interface is gone."""


class LinkState(enum.StrEnum):
    UP = "up"
    DOWN = "down"  # so its routes are gone
    MOVED = "moved"  # to another namespace, without its addresses and routes


class Link:
    """A tunnel's interface. Owns the TUN, its watch, and the namespace's fd while it is kept."""

    def __init__(
        self,
        agent: Agent,
        namespace: Netns,
        name: str,
        log: TunnelLog,
        changed: Callable[[str], object],
        gone: Callable[[str], object],
    ) -> None:
        """`changed` and `gone` are called with a text that says what the namespace's owner did."""
        self.netns = namespace
        self.name = name
        self.state = LinkState.UP
        self.tun_fd = -1  # the kill switch: while it is open, the interface and its routes stay
        self._agent = agent
        self._log = log
        self._report_change = changed
        self._report_gone = gone
        self._watch: LinkWatch | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def is_gone(self) -> bool:
        return tun.is_gone(self.tun_fd)

    async def why_gone(self) -> str:
        """Return the reason why the interface is gone, once it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VERDICT_TIME):
                return await asyncio.shield(self._ended)
        return "the interface is gone"

    def set_interface(self, created: NewInterface, pins: bool) -> None:
        """Take over a new interface. Unless it `pins` the namespace, close the namespace's fd."""
        self.tun_fd = created.tun_fd
        self._start_watch(created.watched)  # it is still down; coming up is no change
        if not pins:
            self.netns.close()

    def adopt_tun(self, tun_fd: int) -> None:
        """Take over the TUN of an interface that an earlier daemon created."""
        self.tun_fd = tun_fd
        self._restart_watch()

    @contextlib.contextmanager
    def current_netns(self) -> Iterator[Netns]:
        """Open the namespace that the interface is in now. Raises TunFailed if it is gone."""
        if self.tun_fd >= 0:
            with contextlib.closing(Netns.of_tun(self.tun_fd)) as netns:
                yield netns
        elif self.netns.fd >= 0:  # the interface does not exist yet
            yield self.netns
        else:
            raise errors.TunFailed("the interface is gone")

    def open_netns(self) -> int:
        """Return a new fd of the namespace that the interface is in now, owned by the caller.

        Raises TunFailed if it is gone.
        """
        with self.current_netns() as netns:
            return os.dup(netns.fd)

    async def change(self, old: InterfaceSettings, new: InterfaceSettings) -> None:
        """Change the interface's settings. Raises TunFailed, and then the old ones stay."""
        with self.current_netns() as netns:
            name = tun.name(self.tun_fd)  # its owner may have renamed it just now
            await self._agent.change(netns.fd, ChangeInterface(name, old, new))

    async def change_back(self, new: InterfaceSettings, old: InterfaceSettings) -> None:
        """Restore the `old` settings after a later step has failed, or log why they can't be."""
        try:
            await self.change(new, old)
        except errors.Error as error:
            self._log.error("the interface keeps a part of its new settings: %s", error)

    @contextlib.asynccontextmanager
    async def changed(self, old: InterfaceSettings, new: InterfaceSettings) -> AsyncIterator[None]:
        """Change the settings, and change them back if the block fails. Raises as change()."""
        await self.change(old, new)
        try:
            yield
        except BaseException:
            await self.change_back(new, old)
            raise

    async def close(self) -> None:
        """Destroy the interface, and return when the kernel has reported its end."""
        if self._watch_task:
            self._watch_task.cancel()
        if self.tun_fd >= 0:
            # Closing the last fd destroys the interface, which takes the kernel tens of ms (RCU).
            fd, self.tun_fd = self.tun_fd, -1
            await blocking.close_and_wait(fd)
            await self._wait_gone()
        if self._watch:
            self._watch.close()
        self.netns.close()

    async def _wait_gone(self) -> None:
        """Wait until the kernel has reported the interface's end.

        Ours may not have been the last fd: a child between fork() and exec() has it for an instant,
        and systemd closes its copy in the background (since version 254).
        """
        if not self._watch:
            return
        try:
            async with asyncio.timeout(VERDICT_TIME):
                await asyncio.shield(self._ended)
        except TimeoutError:
            self._log.warning(
                "%s still exists though its TUN is closed: another process keeps it", self.name
            )

    # ------------------------------------------------------------ changes by the owner

    def _start_watch(self, watched: WatchedLink) -> LinkWatch:
        self._watch = LinkWatch(watched, self.tun_fd, self._on_change, self._on_gone)
        return self._watch

    def _restart_watch(self) -> None:
        """Watch the interface again, in whatever namespace it is now."""
        self._watch_task = asyncio.create_task(self._ask_for_watch(), name="link watch")
        self._watch_task.add_done_callback(log_failure)

    async def _ask_for_watch(self) -> None:
        try:
            watched = await self._agent.watch(self.tun_fd)
        except errors.Error as error:  # it has ended, or its namespace is not ours to enter
            self._log.info("%s is not watched: %s", self.name, error)
        else:
            self._on_change(self._start_watch(watched).status)

    def _on_change(self, status: LinkStatus) -> None:
        if self.tun_fd < 0:
            return  # it goes down because we closed it
        if status.name != self.name:
            old_name, self.name = self.name, status.name
            self._report_change(f"{old_name} was renamed to {self.name}")
        if self._is_elsewhere():
            state = LinkState.MOVED
        else:
            state = LinkState.UP if status.up else LinkState.DOWN
        if state is not self.state:
            self.state = state
            self._report_change(f"{self.name} is {state}")

    def _on_gone(self, why: LinkEnd) -> None:
        closed_by_us = self.tun_fd < 0
        if why is LinkEnd.MOVED and not closed_by_us:
            self._watch = None
            self._restart_watch()
            return
        self._ended.set_result(why)
        if not closed_by_us:
            self._report_gone(why)

    def _is_elsewhere(self) -> bool:
        try:
            with self.current_netns() as netns:
                return netns.id != self.netns.id
        except errors.Error:  # it is ending
            return False
