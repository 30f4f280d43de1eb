"""A closed link is gone, even if another process holds its TUN a moment longer."""

import asyncio
import logging
import os

import pytest

from support.interfaces import NAME, create
from support.namespaces import MakeNamespace, Namespace
from wg4netnsd.agent.client import Agent
from wg4netnsd.systemd import journal
from wg4netnsd.tunnel import link
from wg4netnsd.tunnel.netns import Netns

LONGER = 0.3  # seconds


@pytest.mark.parametrize("pins", [True, False], ids=["in place", "sibling"])
def test_another_process_has_the_tun_a_moment_longer(
    agent: Agent, namespace: MakeNamespace, pins: bool
) -> None:
    inside = namespace()

    async def close() -> None:
        its, seen = await hold(agent, inside, pins)
        others = os.dup(its.tun_fd)
        asyncio.get_running_loop().call_later(LONGER, os.close, others)
        await its.close()
        assert set(inside.links()) == {"lo"}
        assert seen == []  # it is nobody else's doing

    asyncio.run(close())


def test_somebody_keeps_it(
    agent: Agent,
    namespace: MakeNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(link, "VERDICT_TIME", 0.1)
    inside = namespace()

    async def close() -> None:
        its, _ = await hold(agent, inside, True)
        others = os.dup(its.tun_fd)
        await its.close()
        assert set(inside.links()) == {"lo", NAME}
        os.close(others)

    asyncio.run(close())
    assert caplog.messages == [
        f"{NAME} still exists though its TUN is closed: another process keeps it"
    ]


async def hold(agent: Agent, inside: Namespace, pins: bool) -> tuple[link.Link, list[str]]:
    made = await create(agent, inside, pins=pins)
    its_netns = Netns.identify(inside.open())
    log = journal.tunnel_log(logging.getLogger("test"), "t", its_netns.id)
    seen: list[str] = []
    its = link.Link(agent, its_netns, NAME, log, seen.append, seen.append)
    its.set_interface(made, pins)
    return its, seen
