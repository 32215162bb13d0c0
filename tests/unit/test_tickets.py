"""Places that wait for a shard's requests: taken, dropped or given up. No Ray."""

from __future__ import annotations

import asyncio

import pytest

from pipeline import tickets
from pipeline.gate import Gate
from pipeline.tickets import Tickets

KEY = ("batch", 3)


async def enter_all(gate: Gate) -> None:
    """Take all places, which must be free."""
    async with asyncio.timeout(1):
        await gate.enter(gate.places, gate.places)


def test_whoever_takes_a_ticket_has_its_places() -> None:
    """They are free again only when it gives them back; the ticket is gone at once."""

    async def play() -> None:
        gate = Gate(4)
        held = Tickets(gate)
        await held.issue(KEY, 2, 2)
        assert held.keys == {KEY}
        ticket = held.take(KEY)
        assert ticket is not None and (ticket.company, ticket.places) == (2, 2)
        assert held.take(KEY) is None and held.keys == set()
        waiting = asyncio.create_task(enter_all(gate))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.leave(ticket.company, ticket.places)
        await waiting

    asyncio.run(play())


def test_a_ticket_that_nobody_comes_for_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that died in between holds up no one for long."""
    monkeypatch.setattr(tickets, "TICKET_S", 0.01)

    async def play() -> None:
        gate = Gate(4)
        held = Tickets(gate)
        await held.issue(KEY, 1, 1)
        await enter_all(gate)
        assert held.take(KEY) is None

    asyncio.run(play())


def test_what_is_dropped_gives_its_places_back() -> None:
    """Whether it has them already or waits for them; who waited returns without a ticket."""

    async def play() -> None:
        gate = Gate(4)
        held = Tickets(gate)
        await held.issue(KEY, 4, 4)
        other = ("batch", 4)
        waiting = asyncio.create_task(held.issue(other, 4, 1))
        await asyncio.sleep(0)
        assert held.keys == {KEY, other}
        held.drop(other)
        await waiting
        held.drop(KEY)
        assert held.keys == set()
        await enter_all(gate)

    asyncio.run(play())
