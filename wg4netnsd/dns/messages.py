"""DNS messages: the question for a host's addresses, and what an answer says.

The door to dnspython, whose import takes 0.1 s and 5 MB: import this when there is a question.
"""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

PAYLOAD: Final = 1232
"""Bytes of a UDP answer that a path of IPv6's minimum MTU takes (DNS flag day 2020)."""

TYPES: Final = {
    socket.AF_INET: dns.rdatatype.A,
    socket.AF_INET6: dns.rdatatype.AAAA,
}


class Answer(NamedTuple):
    """The answer to one question."""

    truncated: bool
    """It does not fit into a datagram: ask by TCP."""
    rcode: str
    """NOERROR, NXDOMAIN, SERVFAIL, …"""
    addresses: list[str]
    alias_of: str
    """The name that is left to be asked for, if the answer ends with an alias (CNAME)."""


class Question:
    """A question for the addresses of one family of a host."""

    def __init__(self, name: str, family: int, extended: bool = True) -> None:
        """`name` has no search domain to come. `extended`: with EDNS(0), RFC 6891.

        Raises ValueError if it can be no host's name.
        """
        try:
            self._message = dns.message.make_query(
                dns.name.from_text(name),
                TYPES[socket.AddressFamily(family)],
                use_edns=extended,
                payload=PAYLOAD if extended else None,
            )
        except dns.exception.DNSException as error:
            raise ValueError(str(error)) from None
        self.packet: bytes = self._message.to_wire()

    def read_answer(self, packet: bytes) -> Answer | None:
        """Return what a packet answers; None if it is no answer to this question."""
        try:
            found = dns.message.from_wire(packet)
            if not isinstance(found, dns.message.QueryMessage) or not self._message.is_response(
                found
            ):
                return None
            rcode = dns.rcode.to_text(found.rcode())
            if found.flags & dns.flags.TC:
                return Answer(True, rcode, [], "")
            if not found.question or found.rcode() != dns.rcode.NOERROR:
                return Answer(False, rcode, [], "")
            chain = found.resolve_chaining()
        except dns.message.ChainTooLong:
            return Answer(False, "an endless alias", [], "")
        except (dns.exception.DNSException, ValueError):
            return None
        addresses = [str(record.address) for record in chain.answer or ()]
        alias_of = "" if addresses or not chain.cnames else chain.canonical_name.to_text()
        return Answer(False, rcode, addresses, alias_of)
