"""An interface without an engine that gets other settings."""

import asyncio
import os
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from support.interfaces import NAME
from support.namespaces import Namespace
from wg4netnsd import errors
from wg4netnsd.agent.client import Agent
from wg4netnsd.agent.protocol import ChangeInterface, CreateInterface, InterfaceSettings
from wg4netnsd.tunnel.netns import Netns

MTU = 1420


def of(*cidrs: str, routes: str = "", mtu: int = MTU) -> InterfaceSettings:
    return InterfaceSettings(mtu, list(cidrs), routes.split())


class Interface:
    """An interface without an engine: the agent makes it and changes it."""

    def __init__(self, agent: Agent, namespace: Namespace, first: InterfaceSettings) -> None:
        self.agent, self.namespace, self.settings = agent, namespace, first
        self.tun = asyncio.run(self._create(first))

    async def _create(self, first: InterfaceSettings) -> int:
        inside = Netns.identify(self.namespace.open())
        try:
            async with self.agent.create(inside.fd, CreateInterface(NAME, first)) as asked:
                tun, watched = await asked.created()
                os.close(watched.fd)
                await asked.done()
                return tun
        finally:
            inside.close()

    def change(self, new: InterfaceSettings) -> None:
        asyncio.run(self._change(new))
        self.settings = new

    async def _change(self, new: InterfaceSettings) -> None:
        inside = Netns.identify(self.namespace.open())
        try:
            await self.agent.change(inside.fd, ChangeInterface(NAME, self.settings, new))
        finally:
            inside.close()

    def refused(self, new: InterfaceSettings) -> str:
        """Try a change that must fail and leave everything as it was; return the error's text."""
        before = self.state()
        with pytest.raises(errors.TunFailed) as refusal:
            self.change(new)
        assert self.state() == before
        return str(refusal.value)

    def addresses(self) -> list[str]:
        """Return the addresses by family, in the kernel's order."""
        (shown,) = self.namespace.ip("address", "show", "dev", NAME)
        return [f"{each['local']}/{each['prefixlen']}" for each in shown["addr_info"]]

    def routes(self, details: bool = False) -> set[Any]:
        """Return the main table's routes: destination and protocol, or all that `ip` shows."""
        shown = [
            {**each, "dst": _network(each["dst"], family)}
            for family in ("-4", "-6")
            for each in self.namespace.ip(family, "route", "show", "dev", NAME, "table", "main")
        ]
        if details:
            return {repr(sorted(each.items())) for each in shown}
        return {(each["dst"], each.get("protocol", "boot")) for each in shown}

    def mtu(self) -> int:
        return int(self.namespace.links()[NAME]["mtu"])

    def state(self) -> tuple[int, list[str], set[Any]]:
        return self.mtu(), self.addresses(), self.routes(details=True)

    def shape(self) -> tuple[int, set[str], set[Any]]:
        """Return the state without anything that depends on the order of adding addresses."""
        return self.mtu(), set(self.addresses()), self.routes()

    def close(self) -> None:
        os.close(self.tun)


Make = Callable[[InterfaceSettings], Interface]


def run(inside: Namespace, *commands: str) -> None:
    """Run a command as the namespace's owner."""
    for command in commands:
        inside.check(*command.split())


def _network(shown: str, family: str) -> str:
    if shown == "default":
        return "0.0.0.0/0" if family == "-4" else "::/0"
    return str(ip_network(shown))
