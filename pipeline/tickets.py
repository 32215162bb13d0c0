"""Tickets: places in an engine that a shard got before it sends the requests that are to take them.

A caller first asks for places and only then sends requests, so that what waited is never taken for what was
in an engine when it died. Pure asyncio on one event loop. A ticket that nobody comes for gives its places
back after TICKET_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set
from typing import NamedTuple

from pipeline.gate import Gate

# How long places that were given to a caller wait for its requests.
TICKET_S = 10.0

# The batch's folder and the index of the shard.
Key = tuple[str, int]


class Ticket(NamedTuple):
    """Places that wait for a caller's requests.

    Attributes:
        company: most requests in the engine at a time while these places are taken.
        places: how many they are.
        expiry: gives them back.
    """

    company: int
    places: int
    expiry: asyncio.TimerHandle


class Tickets:
    """The tickets of one gate, at most one for each shard."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._entering: dict[Key, asyncio.Future[None]] = {}
        self._issued: dict[Key, Ticket] = {}

    @property
    def keys(self) -> Set[Key]:
        """The shards that have a ticket or wait for one."""
        return self._entering.keys() | self._issued.keys()

    async def issue(self, key: Key, company: int, places: int) -> None:
        """Wait for places and keep them for this shard; none are kept if it is dropped meanwhile."""
        entering = asyncio.ensure_future(self._gate.enter(company, places))
        self._entering[key] = entering
        await asyncio.wait([entering])
        if self._entering.get(key) is entering:
            del self._entering[key]
        if not entering.cancelled():
            expiry = asyncio.get_running_loop().call_later(TICKET_S, self._give_back, key)
            self._issued[key] = Ticket(company, places, expiry)

    def take(self, key: Key) -> Ticket | None:
        """The shard's ticket, whose places the caller now gives back itself; None if it has none any more."""
        if ticket := self._issued.pop(key, None):
            ticket.expiry.cancel()
        return ticket

    def drop(self, key: Key) -> None:
        """Give back what a shard has, and let it wait no longer."""
        if key in self._entering:
            self._entering[key].cancel()
        self._give_back(key)

    def _give_back(self, key: Key) -> None:
        if ticket := self.take(key):
            self._gate.leave(ticket.company, ticket.places)
