"""Apply another configuration to every part of a tunnel, or to none of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wg4netnsd.peers.peers import Peers
from wg4netnsd.peers.resolve import LookupResults
from wg4netnsd.tunnel.engine_slot import EngineSlot, refuse_own_key
from wg4netnsd.tunnel.link import Link
from wg4netnsd.tunnel.resolvconf import ResolvConf
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import Transit


async def apply(
    old: Spec,
    new: Spec,
    found: LookupResults,
    resolv_conf: ResolvConf,
    link: Link,
    peers: Peers,
    engine: EngineSlot,
    transit: Transit | None,
) -> None:
    """Take a tunnel from `old` to `new`; `found` has the addresses of new host names.

    `transit` is the new transit if there is one; it is the engine's if this returns.

    A step that fails undoes itself and every step before it. The caller holds the engine's lock.
    Raises the reason why the old configuration stays.
    """
    key_stays = new.config.interface.private_key == old.config.interface.private_key
    # The daemon can't derive a new public key; the engine does that.
    public_key = engine.public_key if key_stays else ""
    refuse_own_key(new.config, public_key)
    endpoints = peers.new_endpoints(new.config.peers, found)
    async with contextlib.AsyncExitStack() as undo:
        undo.enter_context(resolv_conf.changed(old.dns, new.dns))
        await undo.enter_async_context(link.changed(old.settings, new.settings))
        undo.enter_context(_both_configured(peers, old, new, found))
        await engine.change(old, new, endpoints, public_key, transit)


@contextlib.contextmanager
def _both_configured(peers: Peers, old: Spec, new: Spec, found: LookupResults) -> Iterator[None]:
    """Keep the peers of both configurations while the engine changes.

    The engine reports events of new peers at once. A peer in both keeps its old configuration
    meanwhile.
    """
    both = {peer.public_key: peer for peer in (*new.config.peers, *old.config.peers)}
    peers.configure(both.values(), found)
    try:
        yield
    except BaseException:
        peers.configure(old.config.peers, {})
        raise
