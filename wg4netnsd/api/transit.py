"""Make a tunnel's transit of the options that choose one."""

from __future__ import annotations

from wg4netnsd.api.options import Options
from wg4netnsd.bus.call import Call
from wg4netnsd.config.model import Config
from wg4netnsd.errors import InvalidArgs, InvalidNetns, NoSuchTunnel
from wg4netnsd.tunnel import passed_sockets
from wg4netnsd.tunnel.lifecycle import State
from wg4netnsd.tunnel.manager import Manager
from wg4netnsd.tunnel.netns import Netns
from wg4netnsd.tunnel.transit import (
    HOST,
    HostTransit,
    NamespaceTransit,
    PassedTransit,
    TransitChange,
    TransitKind,
    TransitSpec,
    TunnelTransit,
)


async def make(asked: Options, call: Call, config: Config, manager: Manager) -> TransitChange:
    """Return the transit that the options ask for; the caller closes it.

    Raises InvalidArgs, NoSuchTunnel, PortInUse, EngineFailed, LimitExceeded, Timeout.
    """
    if asked.transit is not None:
        try:
            netns = await Netns.from_fd(call.pop_fd(asked.transit))
        except InvalidNetns as error:
            raise InvalidArgs(f"option 'transit': {error.text}") from None
        spec = TransitSpec(TransitKind.NAMESPACE, netns=netns.id)
        return TransitChange(NamespaceTransit(manager.agent, netns.fd), spec)
    if asked.transit_sockets is not None:
        fds = [call.pop_fd(index) for index in asked.transit_sockets]
        sockets, netns_id = passed_sockets.check(fds, config.interface.listen_port)
        kind, cookie = TransitKind.SOCKETS, sockets.netns_cookie
        spec = TransitSpec(kind, netns=netns_id, cookie=cookie)
        return TransitChange(PassedTransit(sockets), spec)
    if asked.transit_tunnel:
        try:
            outer = manager.get_open(asked.transit_tunnel)
            await outer.lifecycle.wait_for(set(State) - {State.STARTING, State.CLOSED})
        except NoSuchTunnel as error:
            raise NoSuchTunnel(f"option 'transit_tunnel': {error.text}") from None
        spec = TransitSpec(TransitKind.TUNNEL, outer.spec.name, outer.netns_id)
        return TransitChange(TunnelTransit(manager.agent, outer), spec)
    return TransitChange(HostTransit(), HOST)
